"""The messages of a run, made from its records, and the console that prints them beside a progress bar."""

import shlex
import sys
from typing import Any

import jax

from mnist_flax.model import count_parameters
from mnist_flax.training.devices import platform_of
from mnist_flax.training.mesh import describe, resources, shares_batches
from mnist_flax.training.run import Progress, Run
from mnist_flax.training.selection import Row

KERNELS = {"native": "by the CPU kernels", "xla": "by XLA"}


SHARED = (
    "Each batch is shared by several processes, which exchange sums in every layer: on CPUs this is slower than one "
    "process alone. --num-seeds is what more processes speed up."
)


def opening(run: Run, progress: Progress) -> list[str]:
    """The first lines: data, network, devices, epochs and run directory."""
    dataset, config = run.dataset, run.config
    num_train, num_val, num_test = (len(split.labels) for split in (dataset.train, dataset.validation, dataset.test))
    if dataset.selection_split == "validation":
        splits = f"{num_train:,} training, {num_val:,} validation, {num_test:,} test images"
    else:
        splits = f"{num_train:,} training, {num_test:,} test images; models are selected on the test set"
    seeds = f"seeds {run.seeds[0]} to {run.seeds[-1]}" if config.num_seeds > 1 else f"seed {config.seed}"
    num_params = count_parameters(progress.state.params) // config.num_seeds
    accelerators = resources(run.mesh)
    num_teachers = len(jax.tree.leaves(run.teachers)[0]) if run.teachers else 0
    return [
        *([f"Training on 'digits', not on MNIST: {dataset.note}"] if dataset.note else []),
        f"{dataset.name}: {splits}",
        f"{num_params:,} parameters, {seeds}, on {describe(run.mesh)}, {KERNELS[run.kernels.name]}",
        *([f"Starting from trained weights: {config.initial_weights}"] if config.initial_weights else []),
        *([f"Training towards the mean answer of teachers: {num_teachers}, {config.teacher}"] if num_teachers else []),
        *([f"Accelerators: {accelerators}"] if accelerators else []),
        *([SHARED] if platform_of(run.mesh) == "cpu" and shares_batches(run.mesh) else []),
        *([f"Training is slower without the CPU kernels: {run.kernels.why}"] if run.kernels.why else []),
        f"{run.epochs} epoch{'s' * (run.epochs != 1)} of {run.steps_per_epoch:,} steps of {config.batch_size} images, "
        f"into {config.workdir}",
    ]


def resuming(run: Run, progress: Progress) -> str:
    """The line that says from which epoch and step a run resumes."""
    epoch, step = divmod(progress.step, run.steps_per_epoch)
    return f"Resuming after epoch {epoch}" + (f" and {step} steps" if step else "")


def starting_again(run: Run) -> str:
    """The line that says that a run starts again, although it was begun before."""
    return f"Starting again at epoch 1: {run.config.workdir / 'last'} holds no checkpoint to resume from"


def epoch_line(rows: list[Row]) -> str:
    """The line of an epoch: means over the replicas that trained in it."""

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    accuracies = [row["val_accuracy"] for row in rows]
    spread = f" ({len(rows)} seeds: {100 * min(accuracies):.2f}–{max(accuracies):.2%})" if len(rows) > 1 else ""
    split = "Val" if rows[0]["selection_split"] == "validation" else "Val (the test set)"
    return (
        f"Epoch {rows[0]['epoch']} - Loss: {mean('train_loss'):.4f}, Accuracy: {mean('train_accuracy'):.2%}, "
        f"{split}: {mean('val_accuracy'):.2%}{spread}"
    )


def closing(run: Run, summary: dict[str, Any]) -> list[str]:
    """The last lines: accuracies, warnings and times."""
    lines = [""]
    if "seeds" in summary:
        lines.append(f"{'seed':<6}{'epochs':>7}{'best epoch':>12}{'validation':>12}{'test':>9}{'test loss':>11}")
        lines += [
            f"{result['seed']:<6}{result['epochs_run']:>7}{result['best_epoch']:>12}{result['val_accuracy']:>12.2%}"
            f"{result['test_accuracy']:>9.2%}{result['test_loss']:>11.4f}"
            for result in summary["seeds"]
        ]
        bounds = summary["test_accuracy_ci95"]
        lines += [
            "",
            f"Test accuracy  {summary['test_accuracy']:.2%}, mean of {summary['num_seeds']} seeds (standard deviation "
            f"{100 * summary['test_accuracy_std']:.2f} points)",
            *([f"               95 % interval of the mean {bounds[0]:.2%} to {bounds[1]:.2%}"] if bounds else []),
            f"Ensemble       {summary['ensemble']['test_accuracy']:.2%}, by the mean of the seeds' probabilities",
        ]
    else:
        lines += [
            f"Test accuracy  {summary['test_accuracy']:.2%} of {len(run.dataset.test.labels):,} images, loss "
            f"{summary['test_loss']:.4f}",
            f"Best epoch     {summary['best_epoch']} of {summary['epochs_run']}, validation accuracy "
            f"{summary['val_accuracy']:.2%} ({summary['stopped_because']})",
        ]
    if summary["selection_split"] == "test":
        lines.append("Warning        the best epoch was selected on the test set itself")
    for result in summary.get("seeds", [summary]):
        if lost := result.get("lost_epoch"):
            lines.append(f"Warning        epoch {lost} of seed {result['seed']} was better; its checkpoint is damaged")
    if run.dataset.note:
        lines.append(f"Warning        these figures are for 'digits', not for MNIST: {run.dataset.note}")
    return [
        *lines,
        f"Time           {summary['train_seconds']:.1f} s, {summary['images_per_second']:,.0f} images/s",
        f"Curves         {shlex.join(['tensorboard', '--logdir', str(run.config.workdir)])}",
    ]


class Console:
    """Prints lines, and on a terminal a progress bar below them; prints nothing unless `shown`."""

    def __init__(self, run: Run, shown: bool) -> None:
        self._run, self._shown = run, shown
        self._bar: Any = None

    def start_bar(self, step: int) -> None:
        """Show a bar over all images of the run, `step` steps of which are done."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=self._run.epochs * self._run.images_per_epoch,
            initial=self._run.images_after(step),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            bar_format="{desc} {bar} {percentage:.0f}%, {rate_fmt}, {remaining} left{postfix}",
            disable=not (self._shown and sys.stderr.isatty()),
        )

    def advance(self, step: int, loss: float, accuracy: float) -> None:
        """Show how far the run has come after `step` steps, with the loss and accuracy of the epoch so far."""
        epoch = -(-step // self._run.steps_per_epoch)
        self._bar.set_description(f"Epoch {epoch}/{self._run.epochs}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2%}", refresh=False)
        self._bar.update(self._run.images_after(step) - self._bar.n)

    def say(self, *lines: str) -> None:
        """Print lines above the bar."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.clear()
        print(*lines, sep="\n", flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.leave = False
            self._bar.close()
            self._bar = None
