"""The training loop: epochs of `step.train_steps`, selection, early stopping, checkpoints, the final test.

Numbers come from pure functions, and `Progress` goes from one function to the next. The side effects between them are
in `RunFiles` (what is written) and `Console` (what is printed). A run trains one replica for each seed, side by side;
each is selected and stopped on its own.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8

from mnist_flax.augment import augment
from mnist_flax.data import SIDE
from mnist_flax.errors import UserError
from mnist_flax.state import TrainMetrics
from mnist_flax.training import messages
from mnist_flax.training.debugging import describe_divergence
from mnist_flax.training.mesh import BY_REPLICA, FAST_COMPILE, place, process_values, to_host
from mnist_flax.training.programs import TrainingProgram, zero_metrics
from mnist_flax.training.records import epoch_row, model_card, summary_of
from mnist_flax.training.run import Progress, Run, from_trained, start, take_replica
from mnist_flax.training.run_files import RunFiles
from mnist_flax.training.selection import best_kept_epoch, still_training
from mnist_flax.training.signals import Interruption


def fit(run: Run, interruption: Interruption) -> dict[str, Any]:
    """Train a run from where it is to its end, and test it; returns its summary.

    Raises:
        UserError: training has diverged, or files cannot be read or written; nothing is lost.
        SystemExit: a signal asked the run to stop; it has saved and said how to go on.
        StoppedError: a signal came where there was nothing to save.
    """
    with RunFiles(run) as files:
        console = messages.Console(run, shown=files.is_main)
        progress = start(run)
        console.say(*messages.opening(run, progress))
        if restored := files.restore(progress):
            progress = restored
            console.say(messages.resuming(run, progress))
        else:
            if files.started_before:
                console.say(messages.starting_again(run))
            if run.initial is not None:
                progress = from_trained(run, progress, run.initial())
        files.open_records(progress.histories, augmented_samples(run))
        if still_training(progress.histories, run.config).any():
            progress = _train(run, progress, files, console, interruption)
        return test_best(run, progress, files, console)


def _train(
    run: Run, progress: Progress, files: RunFiles, console: messages.Console, interruption: Interruption
) -> Progress:
    """Train all replicas to their ends."""
    started = time.perf_counter()  # compiled ahead of the first step, so that no epoch's time contains it
    training = run.training.compile(progress.state)
    console.say(f"Compiled in {time.perf_counter() - started:.1f} s")
    saved_at = time.monotonic()
    try:
        console.start_bar(progress.step)
        with interruption.note():
            while (running := still_training(progress.histories, run.config)).any():
                for latest in train_epoch(run, training, progress, running, files, console):
                    progress = latest
                    if progress.step % run.steps_per_epoch:
                        saved_at = save_if_due(run, progress, files, console, interruption, saved_at)
                progress = finish_epoch(run, progress, files, running)
                saved_at = time.monotonic()
                console.say(messages.epoch_line([progress.histories[i][-1] for i in np.flatnonzero(running).tolist()]))
                if still_training(progress.histories, run.config).any():
                    saved_at = save_if_due(run, progress, files, console, interruption, saved_at)
        return progress
    finally:
        console.close()


def save_if_due(
    run: Run,
    progress: Progress,
    files: RunFiles,
    console: messages.Console,
    interruption: Interruption,
    saved_at: float,
) -> float:
    """Save `last` if it was saved too long ago; returns when it was saved last, by `time.monotonic`.

    Raises:
        SystemExit: this process, or any other of the job, has been sent a signal; all is saved.
    """
    due = time.monotonic() - saved_at >= run.config.checkpoint_every_seconds
    signal, due = process_values(np.array([interruption.signal or 0, due])).max(axis=0).tolist()
    if signal or due:
        files.save_last(progress)
        saved_at = time.monotonic()
    if signal:
        console.close()
        console.say(f"Saved after step {progress.step}. Run the same command again to go on.")
        raise SystemExit(128 + signal)
    return saved_at


def train_epoch(
    run: Run,
    training: TrainingProgram,
    progress: Progress,
    running: Bool[np.ndarray, " replicas"],
    files: RunFiles,
    console: messages.Console,
) -> Iterator[Progress]:
    """Train the replicas that are `running` to the end of the epoch they are in; yields the progress after each chunk.

    Raises:
        UserError: a loss or gradient is not finite.
    """
    plan, size = training.plan(progress.state), run.config.batch_size
    done = progress.step % run.steps_per_epoch
    while done < run.steps_per_epoch:
        started = time.perf_counter()
        num_steps = 1 if run.config.debug_nans else min(training.chunk, run.steps_per_epoch - done)
        before = jax.tree.map(jnp.copy, progress.state) if run.config.debug_nans else None
        state, metrics = training(progress.state, progress.metrics, plan, np.where(running, np.int32(num_steps), 0))
        seen: TrainMetrics = to_host(metrics)
        seconds = progress.epoch_seconds + time.perf_counter() - started
        step, done = progress.step + num_steps, done + num_steps
        progress = progress._replace(state=state, metrics=metrics, epoch_seconds=seconds, step=step)
        if not seen.finite[running].all():
            raise UserError(describe_divergence(run, progress, before, plan, files.last.directory))
        loss, correct = float(seen.loss[running].mean()), float(seen.correct[running].mean())
        console.advance(step, loss / done, correct / (done * size))
        yield progress


def finish_epoch(run: Run, progress: Progress, files: RunFiles, running: Bool[np.ndarray, " replicas"]) -> Progress:
    """Evaluate the replicas that trained in an epoch, and have what it leaves written: networks, progress, records."""
    totals = to_host(progress.metrics)
    found = run.evaluation(progress.state.variables, run.validation)
    chosen: list[int] = np.flatnonzero(running).tolist()
    histories, cards = list(progress.histories), {}
    for i in chosen:
        row = epoch_row(
            run, len(histories[i]) + 1, take_replica(totals, i), found, i, progress.epoch_seconds, sharing=len(chosen)
        )
        histories[i] = (*histories[i], row)
        if best_kept_epoch(histories[i]) == row["epoch"]:
            cards[i] = model_card(run, int(run.seeds[i]), row)
    zero = zero_metrics(len(run.seeds), run.mesh)
    progress = progress._replace(metrics=zero, histories=histories, epoch_seconds=0.0)
    files.save_epoch(progress, cards, chosen)
    return progress


def augmented_samples(run: Run) -> UInt8[np.ndarray, "64 28 28"]:
    """The first 64 training images, over again if there are fewer, augmented as the first steps augment them."""
    warp = jax.jit(augment, static_argnums=2, compiler_options=FAST_COMPILE)
    images: Array = jnp.asarray(np.resize(run.dataset.train.images[:64], (64, SIDE, SIDE)))
    warped = warp(jax.random.key(run.config.seed), images, run.options.augmentation)
    return np.asarray(warped).round().astype(np.uint8)


def test_best(run: Run, progress: Progress, files: RunFiles, console: messages.Console) -> dict[str, Any]:
    """Test every replica's best checkpoint, once, and write the summary."""
    variables, cards = files.restore_best(progress)
    found = run.evaluation(place(variables, run.mesh, BY_REPLICA), run.evaluation.batches(run.dataset.test))
    summary = summary_of(run, progress.histories, cards, found)
    files.write_summary(summary, run.config.to_json())
    console.say(*messages.closing(run, summary))
    return summary
