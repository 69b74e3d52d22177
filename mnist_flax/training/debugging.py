"""What to say when a step's numbers are not finite, and finding the operation from which they are not."""

import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_flax.data import Examples
from mnist_flax.model import MNISTNet
from mnist_flax.step import EpochPlan, StepOptions, Totals, TrainState, next_batch, train_step
from mnist_flax.teaching import mean_probabilities
from mnist_flax.training.checkpoint import resumable
from mnist_flax.training.mesh import to_host
from mnist_flax.training.run import Progress, Run, of_replica


def describe_divergence(
    run: Run,
    progress: Progress,
    plan: EpochPlan,
    before: tuple[TrainState, Totals] | None,
    last: Path,
) -> str:
    """What to say of a step that was not finite, and what to do.

    Args:
        run: the run.
        progress: after that step.
        plan: of the current epoch.
        before: state and totals before the call that took the step; kept under --debug-nans only.
        last: the directory of the `last` checkpoint.
    """
    totals: Totals = to_host(progress.totals)
    i = int(np.flatnonzero(~totals.finite)[0])
    step = int(to_host(progress.state.step)[i]) - 1
    seed = f" of seed {run.seeds[i]}" if len(run.seeds) > 1 else ""
    kept = f" (the last good checkpoint stays in {last})" if any(last.glob("[0-9]*")) else ""
    hint = _find_operation(run, i, totals, plan, before) if before else "--debug-nans names the operation."
    return (
        f"loss {totals.last_loss[i]} and gradient norm {totals.last_grad_norm[i]} in step {step}{seed} (epoch "
        f"{len(progress.histories[i]) + 1}, learning rate {float(run.learning_rate(jnp.int32(step))):.3g}) are not "
        f"finite numbers: training has diverged; lower --max-lr and choose a new --workdir{kept}. {hint}"
    )


def _find_operation(run: Run, i: int, totals: Totals, plan: EpochPlan, before: tuple[TrainState, Totals]) -> str:
    """Go back to the state from which replica `i` took its failed step, and look for the operation."""
    good_steps = int(totals.steps[i]) - 1 - to_host(before[1].steps)[i]
    state, _ = run.training(*before, plan, np.where(np.arange(len(run.seeds)) == i, good_steps, 0))
    arrays = resumable(state)
    arrays["key"] = jax.random.key_data(arrays["key"])
    own: dict[str, Any] = jax.tree.map(jnp.asarray, of_replica(to_host(arrays), i))
    own["key"] = jax.random.wrap_key_data(own["key"])
    found = nonfinite_operation(
        state.replace(**own),
        of_replica(to_host(plan), i),
        examples=run.dataset.train,
        options=run.options,
        teachers=run.teachers,
    )
    return f"{found}." if found else "Repeated one operation at a time, the step stays finite."


def nonfinite_operation(
    state: TrainState,
    plan: EpochPlan,
    *,
    examples: Examples,
    options: StepOptions,
    teachers: Any = None,
) -> str | None:
    """Repeat one replica's next step operation by operation; name the first whose result is not finite, and its line.

    None if the step stays finite that way: a sum over a whole batch on one device rounds differently from a sum of
    partial sums on many.
    """
    batch = next_batch(
        state, plan, 0, options.batch_size, examples=jax.tree.map(jnp.asarray, examples), options=options
    )
    if teachers is not None:
        targets = mean_probabilities(teachers, batch.images, apply_fn=MNISTNet().apply, in_turns=False)
        batch = batch._replace(targets=targets)
    package = Path(__file__).parents[1]
    # Not also `jax.debug_infs`: it stops at the -inf from which every softmax starts.
    with jax.disable_jit(), jax.debug_nans(True):
        try:
            train_step(state.replace(apply_fn=MNISTNet().apply), batch, label_smoothing=options.label_smoothing)
        except FloatingPointError as error:
            stack = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent == package]
            layers = [frame for frame in stack if Path(frame.filename).name == "model.py"]
            # Our innermost line, and the model's line that led there; an error in a gradient has only the former.
            lines = [stack[-1], *layers[:1]]
            return f"{error}: " + ", in ".join(f"`{f.line}` ({Path(f.filename).name}:{f.lineno})" for f in lines)
    return None
