"""The message of a step whose numbers are not finite; with --debug-nans it names the operation from which they are not.

JAX_DEBUG_NANS=1 names only the whole program, `jit(train_replicas)`: JAX repeats a program operation by operation only
if that is not compiled ahead of time and still has its arguments, and training writes over them.
"""

import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_flax.data import Examples
from mnist_flax.distillation import mean_probabilities
from mnist_flax.model import MNISTNet
from mnist_flax.state import TrainMetrics, TrainState
from mnist_flax.step import EpochPlan, StepOptions, take_batch, train_step
from mnist_flax.training.checkpoint import resumable
from mnist_flax.training.mesh import to_host
from mnist_flax.training.run import Progress, Run, take_replica


def describe_divergence(run: Run, progress: Progress, before: TrainState | None, plan: EpochPlan, last: Path) -> str:
    """The message of a step that was not finite: which it was, what to do, and the operation if that is looked for.

    Args:
        run: the run.
        progress: after that step.
        before: the states before it; kept under --debug-nans only.
        plan: of the current epoch.
        last: the directory of the `last` checkpoint.
    """
    metrics: TrainMetrics = to_host(progress.metrics)
    i = int(np.flatnonzero(~metrics.finite)[0])
    step = int(to_host(progress.state.step)[i]) - 1
    seed = f" of seed {run.seeds[i]}" if len(run.seeds) > 1 else ""
    kept = f" (the last good checkpoint stays in {last})" if any(last.glob("[0-9]*")) else ""
    hint = "--debug-nans names the operation."
    if before is not None:
        arrays = resumable(before)
        arrays["key"] = jax.random.key_data(arrays["key"])
        own: dict[str, Any] = jax.tree.map(jnp.asarray, take_replica(to_host(arrays), i))
        own["key"] = jax.random.wrap_key_data(own["key"])
        state, own_plan = before.replace(**own), take_replica(to_host(plan), i)
        found = nonfinite_operation(state, own_plan, run.dataset.train, run.options, run.teachers)
        hint = f"{found}." if found else "Repeated one operation at a time, the step stays finite."
    return (
        f"loss {metrics.last_loss[i]} and gradient norm {metrics.last_grad_norm[i]} in step {step}{seed} (epoch "
        f"{len(progress.histories[i]) + 1}, learning rate {float(run.learning_rate(jnp.int32(step))):.3g}) are not "
        f"finite numbers: training has diverged; lower --max-lr and choose a new --workdir{kept}. {hint}"
    )


def nonfinite_operation(
    state: TrainState, plan: EpochPlan, examples: Examples, options: StepOptions, teachers: Any = None
) -> str | None:
    """Repeat one replica's next step operation by operation; name the first whose result is not finite, and its line.

    None if the step stays finite that way: a sum over a whole batch on one device rounds differently from a sum of
    partial sums on many.
    """
    batch = take_batch(plan, state.step, examples=jax.tree.map(jnp.asarray, examples), options=options)
    if teachers is not None:
        targets = mean_probabilities(teachers, batch.images, apply_fn=MNISTNet().apply, sequential=False)
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
