"""Finding the operation from which a step's numbers stop being finite."""

import traceback
from pathlib import Path

import jax
from jaxtyping import Array, Int

from mnist_flax.data import Examples
from mnist_flax.model import MNISTNet
from mnist_flax.step import StepOptions, TrainState, next_batch, train_step


def nonfinite_operation(
    state: TrainState, order: Int[Array, " n"], *, examples: Examples, options: StepOptions
) -> str | None:
    """Repeat the state's next step one operation at a time; the first whose result is not finite, and where it stands.

    `state` is one replica's. None if the step stays finite that way: the sums of a whole batch on one device round
    differently from those of shares on many.
    """
    batch = next_batch(state, order, 0, options.batch_size, examples=examples, options=options)
    here = Path(__file__).parent
    with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
        try:
            train_step(state.replace(apply_fn=MNISTNet().apply), batch, label_smoothing=options.label_smoothing)
        except FloatingPointError as error:
            stack = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == here]
            layers = [frame for frame in stack if Path(frame.filename).name == "model.py"]
            # The innermost line of ours, and the line of the model that led there; a gradient has only the former.
            lines = [stack[-1], *layers[:1]]
            return f"{error}: " + ", in ".join(f"`{f.line}` ({Path(f.filename).name}:{f.lineno})" for f in lines)
    return None
