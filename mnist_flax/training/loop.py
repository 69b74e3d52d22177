"""The training loop: epochs of `step.train_steps`, selection, early stopping, checkpoints, the final test.

Numbers come from pure functions, and `Progress` goes from one function to the next. The side effects between them are
in `RunFiles` (what is written) and `Console` (what is printed). A run trains one replica for each seed, side by side;
each is selected and stopped on its own.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mnist_flax.augment import augment
from mnist_flax.data import SIDE
from mnist_flax.errors import UserError
from mnist_flax.step import Totals
from mnist_flax.training import messages
from mnist_flax.training.debugging import describe_divergence
from mnist_flax.training.mesh import BY_REPLICA, RUN_ONCE, place, to_host
from mnist_flax.training.programs import zero_totals
from mnist_flax.training.records import epoch_row, model_card, summary_of
from mnist_flax.training.run import Progress, Run, from_trained, of_replica, start
from mnist_flax.training.run_files import RunFiles
from mnist_flax.training.selection import best_kept_epoch, still_training
from mnist_flax.training.signals import Interruption


def carry_out(run: Run, interruption: Interruption) -> dict[str, Any]:
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


def _train(run: Run, progress: Progress, files: RunFiles, console: messages.Console, interruption: Interruption) -> Any:
    """Train all replicas to their ends."""
    started = time.perf_counter()  # compiled ahead of the first step, so that no epoch's time contains it
    run.training.compile(progress.state)
    console.say(f"Compiled in {time.perf_counter() - started:.1f} s")
    saved_at = time.monotonic()

    def between_chunks(progress: Progress) -> None:
        """Save if it is time to; save and exit if this process, or any other of the job, has been sent a signal."""
        nonlocal saved_at
        due = time.monotonic() - saved_at >= run.config.checkpoint_every_seconds
        signal, due = to_host(np.array([[interruption.signal or 0, due]])).max(axis=0).tolist()
        if signal or due:
            files.save_last(progress)
            saved_at = time.monotonic()
        if signal:
            console.close()
            console.say(f"Saved after step {progress.step}. Run the same command again to go on.")
            raise SystemExit(128 + signal)

    try:
        console.start_bar(progress.step)
        with interruption.note():
            while (running := still_training(progress.histories, run.config)).any():
                progress = train_epoch(run, progress, files, console, between_chunks)
                progress = finish_epoch(run, progress, files, running)
                saved_at = time.monotonic()
                console.say(messages.epoch_line([progress.histories[i][-1] for i in np.flatnonzero(running)]))
                if still_training(progress.histories, run.config).any():
                    between_chunks(progress)
        return progress
    finally:
        console.close()


def train_epoch(
    run: Run,
    progress: Progress,
    files: RunFiles,
    console: messages.Console,
    between_chunks: Callable[[Progress], None],
) -> Progress:
    """Train the replicas that have not come to their end to the end of the epoch they are in.

    Raises:
        UserError: a loss or gradient is not finite.
    """
    running = still_training(progress.histories, run.config)
    plan, size = run.training.plan(progress.state), run.config.batch_size
    epoch, done = divmod(int(to_host(progress.state.step)[running].max()), run.steps_per_epoch)
    while done < run.steps_per_epoch:
        started = time.perf_counter()
        num_steps = min(run.training.chunk, run.steps_per_epoch - done)
        before = jax.tree.map(jnp.copy, (progress.state, progress.totals)) if run.config.debug_nans else None
        state, totals = run.training(progress.state, progress.totals, plan, np.where(running, np.int32(num_steps), 0))
        seen: Totals = to_host(totals)
        seconds = progress.epoch_seconds + time.perf_counter() - started
        progress = progress._replace(state=state, totals=totals, epoch_seconds=seconds)
        if not seen.finite[running].all():
            raise UserError(describe_divergence(run, progress, plan, before, files.last.directory))
        done += num_steps
        loss, correct = float(seen.loss[running].mean()), float(seen.correct[running].mean())
        console.advance(epoch * run.steps_per_epoch + done, loss / done, correct / (done * size))
        if done < run.steps_per_epoch:
            between_chunks(progress)
    return progress


def finish_epoch(run: Run, progress: Progress, files: RunFiles, running: Any) -> Progress:
    """Evaluate the replicas that trained in an epoch, and have what it leaves written: networks, progress, records."""
    totals = to_host(progress.totals)
    figures = run.evaluation(progress.state.variables, run.validation)
    chosen: list[int] = np.flatnonzero(running).tolist()
    cards = {}
    for i in chosen:
        history = progress.histories[i]
        row = epoch_row(
            run, len(history) + 1, of_replica(totals, i), figures, i, progress.epoch_seconds, sharing=len(chosen)
        )
        history.append(row)
        if best_kept_epoch(history) == row["epoch"]:
            cards[i] = model_card(run, int(run.seeds[i]), row)
    progress = progress._replace(totals=zero_totals(len(run.seeds), run.mesh), epoch_seconds=0.0)
    files.save_epoch(progress, cards, chosen)
    return progress


def augmented_samples(run: Run) -> np.ndarray:
    """The first 64 training images, over again if there are fewer, augmented as the first steps augment them."""
    warp = jax.jit(augment, static_argnums=2, compiler_options=RUN_ONCE)
    images: Array = jnp.asarray(np.resize(run.dataset.train.images[:64], (64, SIDE, SIDE)))
    warped = warp(jax.random.key(run.config.seed), images, run.options.augmentation)
    return np.asarray(warped).round().astype(np.uint8)


def test_best(run: Run, progress: Progress, files: RunFiles, console: messages.Console) -> dict[str, Any]:
    """Test every replica's best checkpoint, once, and write the summary."""
    variables, cards = files.restore_best(progress)
    figures = run.evaluation(place(variables, run.mesh, BY_REPLICA), run.evaluation.batches(run.dataset.test))
    summary = summary_of(run, progress.histories, cards, figures)
    files.write_summary(summary, run.config.to_json())
    console.say(*messages.closing(run, summary))
    return summary
