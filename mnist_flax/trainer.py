"""The training loop: epochs of `step.train_steps`, selection, early stopping, checkpoints, the final test.

The numbers come from pure functions; what this file adds is their order and the side effects between them. A run
trains one replica for every seed, side by side; each is selected and stopped on its own.
"""

import math
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from mnist_flax import augment, logs
from mnist_flax.checkpoint import Checkpoints, resumable
from mnist_flax.config import Config
from mnist_flax.data import Dataset
from mnist_flax.debug import nonfinite_operation
from mnist_flax.errors import UserError
from mnist_flax.mesh import BY_REPLICA, describe, place, to_host
from mnist_flax.model import count_parameters
from mnist_flax.optim import one_cycle
from mnist_flax.programs import RUN_ONCE, Evaluation, Training, create_states, step_options, zero_totals
from mnist_flax.step import Totals, TrainState

if TYPE_CHECKING:
    from mnist_flax.train import Interruption


def best_epoch(history: list[logs.Row]) -> int:
    """The (first) epoch with the highest validation accuracy, counted from 1."""
    return 1 + max(range(len(history)), key=lambda i: (history[i]["val_accuracy"], -i))


def stop_reason(history: list[logs.Row], config: Config) -> str | None:
    """Why training is over after the epochs of `history`, or None if it is not."""
    if not history:
        return None
    if config.target_accuracy is not None and history[-1]["val_accuracy"] >= config.target_accuracy:
        return f"validation accuracy reached the target of {config.target_accuracy:.2%}"
    if len(history) >= (config.epochs or 0):
        return "all epochs done"
    if config.patience and len(history) - best_epoch(history) >= config.patience:
        return f"no better validation accuracy for {config.patience} epochs"
    return None


def statistics_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and of the test accuracy standard deviation and 95 % interval of the mean (Student's t)."""
    from scipy import stats

    n = len(results)
    mean: dict[str, Any] = {
        name: math.fsum(result[name] for result in results) / n
        for name in ("val_accuracy", "test_accuracy", "test_loss")
    }
    std = float(np.std([result["test_accuracy"] for result in results], ddof=1))
    margin = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {
        "num_seeds": n,
        "epochs_run": max(result["epochs_run"] for result in results),
        **mean,
        "test_accuracy_std": std,
        "test_accuracy_ci95": [mean["test_accuracy"] - margin, mean["test_accuracy"] + margin],
    }


class Replica:
    """One seed's records: its history, and the directory with its best checkpoint, metrics and TensorBoard events."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed, self.directory = seed, directory
        self.history: list[logs.Row] = []
        self.best = Checkpoints(directory / "best")
        self.tensorboard: logs.TensorBoard | None = None  # in the main process

    def close(self) -> None:
        """Flush and release what is open."""
        self.best.close()
        if self.tensorboard:
            self.tensorboard.close()


class Trainer:
    """One run: its state, its compiled programs and its files."""

    def __init__(self, config: Config, dataset: Dataset, mesh: Mesh, interruption: "Interruption") -> None:
        self.config, self.dataset, self.mesh, self.interruption = config, dataset, mesh, interruption
        self.is_main = jax.process_index() == 0
        self.seeds = config.seed + np.arange(config.num_seeds, dtype=np.uint32)
        self.epochs = config.epochs or 0
        self.normalization = dataset.normalization
        self.steps_per_epoch = -(-len(dataset.train.labels) // config.batch_size)
        total_steps = self.epochs * self.steps_per_epoch
        self.options = step_options(config, self.normalization, total_steps)
        self.training = Training(mesh, self.options, dataset.train)
        self.evaluation = Evaluation(mesh, self.normalization)
        self.validation_batches = self.evaluation.batches(dataset.validation)
        self.learning_rate, _ = one_cycle(total_steps, config.max_lr)
        self.state = create_states(self.seeds, mesh, config, total_steps)
        self.totals = zero_totals(config.num_seeds, mesh)
        self.epoch_seconds = 0.0
        self.saved_at = time.monotonic()

    @property
    def _running(self) -> list[bool]:
        """Which replicas have not come to their end."""
        return [stop_reason(replica.history, self.config) is None for replica in self.replicas]

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """All that is left of the run; returns its summary."""
        workdir = self.config.workdir
        several = self.config.num_seeds > 1
        self.replicas = [Replica(int(s), workdir / f"seed-{s}" if several else workdir) for s in self.seeds]
        self.last = Checkpoints(workdir / "last")
        self._announce()
        self._restore()
        if self.is_main:
            for replica in self.replicas:
                replica.tensorboard = logs.TensorBoard(replica.directory, replica.history)
            assert self.replicas[0].tensorboard is not None
            self.replicas[0].tensorboard.add_grid("augmented", self._augmented_samples(), columns=8)
        if any(self._running):
            self._compile()
        self.progress = logs.Progress(
            self.epochs * self.steps_per_epoch * self.config.batch_size,
            int(to_host(self.state.step).max()) * self.config.batch_size,
            show=self.is_main,
        )
        try:
            while any(self._running):
                self._epoch()
            return self._finish()
        finally:
            self.progress.close()
            self.last.close()
            for replica in self.replicas:
                replica.close()

    def _compile(self) -> None:
        """Compile the training program ahead of its first call, so that no epoch's time contains it."""
        started = time.perf_counter()
        self.training.compile(self.state, self.totals)
        self._say(f"Compiled in {time.perf_counter() - started:.1f} s")

    def _epoch(self) -> None:
        """Train the running replicas to the end of the epoch they are in, evaluate, checkpoint, record."""
        running = np.array(self._running)
        order, totals = self.training.order(self.state), self.totals
        epoch, done = divmod(int(to_host(self.state.step)[running].max()), self.steps_per_epoch)
        while done < self.steps_per_epoch:
            started = time.perf_counter()
            num_steps = min(self.training.chunk, self.steps_per_epoch - done)
            before = jax.tree.map(jnp.copy, (self.state, self.totals)) if self.config.debug_nans else None
            self.state, self.totals = self.training(
                self.state, self.totals, order, np.where(running, np.int32(num_steps), 0)
            )
            totals = to_host(self.totals)
            self.epoch_seconds += time.perf_counter() - started
            if not totals.finite[running].all():
                raise UserError(self._not_finite(totals, order, before))
            done += num_steps
            self.progress.advance(
                epoch + 1,
                self.epochs,
                num_steps * self.config.batch_size,
                float(totals.loss[running].mean()) / done,
                float(totals.correct[running].mean()) / (done * self.config.batch_size),
            )
            if done < self.steps_per_epoch:
                self._between_chunks()

        variables = to_host(self.state.variables)
        figures = self.evaluation(self.state.variables, self.validation_batches)
        for i in np.flatnonzero(running):
            replica = self.replicas[i]
            one: Totals = jax.tree.map(lambda x, i=i: x[i], totals)
            row = self._row(epoch + 1, one, float(figures.losses[i]), float(figures.accuracies[i]), int(running.sum()))
            replica.history.append(row)
            if best_epoch(replica.history) == row["epoch"]:
                ours = jax.tree.map(lambda x, i=i: x[i], variables)
                replica.best.save(row["step"], ours, self._model_card(replica.seed, row))
        self.totals, self.epoch_seconds = zero_totals(self.config.num_seeds, self.mesh), 0.0
        self._save()
        chosen = [replica for replica, was_running in zip(self.replicas, running, strict=True) if was_running]
        if self.is_main:
            for replica in chosen:
                logs.write_history(replica.directory / "metrics.jsonl", replica.history)
                assert replica.tensorboard is not None
                replica.tensorboard.add_epoch(replica.history[-1])
        self._announce_epoch([replica.history[-1] for replica in chosen])
        if any(self._running):
            self._between_chunks()

    def _finish(self) -> dict[str, Any]:
        """Test every replica's best checkpoint, once, and write the summary."""
        like = jax.tree.map(lambda x: x[0], to_host(self.state.variables))
        variables, cards = [], []
        for replica in self.replicas:
            restored = replica.best.restore(like=like)
            if restored is None:
                lost = replica.best.directory
                raise UserError(f"{lost} has lost its checkpoints; pass --overwrite to train again")
            variables.append(restored[0])
            cards.append(restored[1])
        stacked = place(jax.tree.map(lambda *leaves: np.stack(leaves), *variables), self.mesh, BY_REPLICA)
        figures = self.evaluation(stacked, self.evaluation.batches(self.dataset.test))
        figures_of_each = figures.accuracies.tolist(), figures.losses.tolist()
        results = [
            {
                "seed": replica.seed,
                "epochs_run": len(replica.history),
                "stopped_because": stop_reason(replica.history, self.config),
                "best_epoch": card["epoch"],
                "val_accuracy": card["val_accuracy"],
                "test_accuracy": accuracy,
                "test_loss": loss,
            }
            for replica, card, accuracy, loss in zip(self.replicas, cards, *figures_of_each, strict=True)
        ]
        several = len(results) > 1
        seconds = sum(row["seconds"] for row in max((replica.history for replica in self.replicas), key=len))
        num_epochs = sum(len(replica.history) for replica in self.replicas)
        summary = {
            "dataset": self.dataset.name,
            "dataset_note": self.dataset.note,
            "preset": self.config.preset,
            "num_params": count_parameters(like["params"]),
            "selection_split": self.dataset.selection_split,
            **(statistics_of(results) if several else results[0]),
            **({"ensemble": {"test_accuracy": figures.ensemble_accuracy}, "seeds": results} if several else {}),
            "train_seconds": seconds,
            "images_per_second": num_epochs * self.steps_per_epoch * self.config.batch_size / seconds,
            "devices": describe(self.mesh),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets")},
            },
        }
        if self.is_main:
            for replica, result in zip(self.replicas, results, strict=True):
                assert replica.tensorboard is not None
                shown = {name: result[name] for name in ("val_accuracy", "test_accuracy", "test_loss")}
                replica.tensorboard.add_result({**self.config.to_json(), "seed": replica.seed}, shown)
            logs.write_json(self.config.workdir / "summary.json", summary)
        self._announce_result(summary)
        return summary

    # -- resuming and stopping -------------------------------------------------------------------------------------

    def _save(self) -> None:
        histories = [replica.history for replica in self.replicas]
        self.last.save(
            self._step,
            {"state": resumable(self.state), "totals": self.totals},
            {"histories": histories, "epoch_seconds": self.epoch_seconds},
        )
        self.saved_at = time.monotonic()

    @property
    def _step(self) -> int:
        """Steps that the replica which has gone furthest has taken."""
        return int(to_host(self.state.step).max())

    def _restore(self) -> None:
        """Take up where the newest `last` checkpoint stopped, if there is one."""
        restored = self.last.restore(like={"state": resumable(self.state), "totals": self.totals})
        if restored is not None:
            arrays, metadata = restored
            self.state = self.state.replace(**arrays["state"])
            self.totals = Totals(*arrays["totals"])
            self.epoch_seconds = metadata["epoch_seconds"]
            for replica, history in zip(self.replicas, metadata["histories"], strict=True):
                replica.history = history
            epoch, step = divmod(self._step, self.steps_per_epoch)
            self._say(f"Resuming after epoch {epoch}" + (f" and {step} steps" if step else ""))
        for replica in self.replicas:
            # A run killed between its saves redoes the epoch that its newest `best` came from.
            replica.best.discard_after(self._step)
            if replica.history and replica.best.latest_step() is None:
                raise UserError(f"{replica.best.directory} has no sound checkpoint left; train again, with --overwrite")

    def _between_chunks(self) -> None:
        """Save if it is time to; save and exit if this process, or any other of the job, has been sent a signal."""
        due = time.monotonic() - self.saved_at >= self.config.checkpoint_every_seconds
        signal, due = to_host(np.array([[self.interruption.signal or 0, due]])).max(axis=0).tolist()
        if (signal or due) and self.last.latest_step() != self._step:
            self._save()
        if not signal:
            return
        self.progress.close()
        self._say(f"Saved after step {self._step}. Run the same command again to go on.")
        raise SystemExit(128 + signal)

    def _not_finite(self, totals: Totals, order: Array, before: tuple[TrainState, Totals] | None) -> str:
        """What to say of a step that was not; `before` is the state of the chunk it was in, kept under --debug-nans."""
        i = int(np.flatnonzero(~np.asarray(totals.finite))[0])
        step = int(to_host(self.state.step)[i]) - 1
        seed = f" of seed {self.replicas[i].seed}" if len(self.replicas) > 1 else ""
        learning_rate = float(self.learning_rate(jnp.int32(step)))
        return (
            f"loss {totals.last_loss[i]} and gradient norm {totals.last_grad_norm[i]} in step {step}{seed} (epoch "
            f"{len(self.replicas[i].history) + 1}, learning rate {learning_rate:.3g}) are not finite numbers: training "
            f"has diverged; lower --max-lr and choose a new --workdir"
            + (f" (the last good checkpoint stays in {self.last.directory}). " if self.last.latest_step() else ". ")
            + (self._operation(i, totals, order, before) if before else "--debug-nans names the operation.")
        )

    def _operation(self, i: int, totals: Totals, order: Array, before: tuple[TrainState, Totals]) -> str:
        """Go back to the state that replica `i` took its failed step from, and look for the operation."""
        good_steps = int(totals.steps[i]) - 1 - to_host(before[1].steps)[i]
        state, _ = self.training(*before, order, np.where(np.arange(len(self.replicas)) == i, good_steps, 0))
        arrays = resumable(state)
        arrays["key"] = jax.random.key_data(arrays["key"])
        own: dict[str, Any] = jax.tree.map(lambda x: jnp.asarray(x[i]), to_host(arrays))
        own["key"] = jax.random.wrap_key_data(own["key"])
        found = nonfinite_operation(
            state.replace(**own), to_host(order)[i], examples=self.dataset.train, options=self.options
        )
        return f"{found}." if found else "Repeated one operation at a time, the step stays finite."

    # -- records ---------------------------------------------------------------------------------------------------

    def _row(self, epoch: int, totals: Totals, val_loss: float, val_accuracy: float, replicas: int) -> logs.Row:
        images, step = self.steps_per_epoch * self.config.batch_size, epoch * self.steps_per_epoch
        return {
            "epoch": epoch,
            "step": step,
            "train_loss": float(totals.loss) / self.steps_per_epoch,
            "train_accuracy": int(totals.correct) / images,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "selection_split": self.dataset.selection_split,
            "learning_rate": float(self.learning_rate(jnp.int32(step - 1))),
            "grad_norm": float(totals.grad_norm) / self.steps_per_epoch,
            "images_per_second": replicas * images / self.epoch_seconds,
            "seconds": self.epoch_seconds,
            "time": time.time(),
        }

    def _model_card(self, seed: int, row: logs.Row) -> dict[str, Any]:
        """What someone who finds only the `best` checkpoint needs to know."""
        return {
            "dataset": self.dataset.name,
            "class_names": list(self.dataset.class_names),
            "normalization": self.normalization._asdict(),
            "seed": seed,
            # Without where it lay: a network travels, and directories are nobody else's business.
            "config": {name: v for name, v in self.config.to_json().items() if name not in {"workdir", "data_dir"}},
            **{name: row[name] for name in ("epoch", "step", "val_accuracy", "val_loss", "selection_split")},
        }

    def _augmented_samples(self) -> np.ndarray:
        images = jnp.asarray(self.dataset.train.images[:64])
        warp = jax.jit(augment.augment, static_argnums=2, compiler_options=RUN_ONCE)
        return (
            np.asarray(warp(jax.random.key(self.config.seed), images, self.options.augmentation))
            .round()
            .astype(np.uint8)
        )

    def _say(self, line: str) -> None:
        if self.is_main:
            print(line, flush=True)

    def _announce(self) -> None:
        dataset, config = self.dataset, self.config
        if dataset.note:
            self._say(f"Training on 'digits', not on MNIST: {dataset.note}")
        selection = "a held-out validation split" if dataset.selection_split == "validation" else "the test set"
        self._say(
            f"{dataset.name}: {len(dataset.train.labels):,} training images (mean {self.normalization.mean:.4f}, "
            f"standard deviation {self.normalization.std:.4f}), models selected on {selection} "
            f"({len(dataset.validation.labels):,}), {len(dataset.test.labels):,} test images"
        )
        seeds = f"seeds {self.seeds[0]} to {self.seeds[-1]} of " if config.num_seeds > 1 else ""
        num_params = count_parameters(self.state.params) // config.num_seeds
        self._say(
            f"{seeds}{num_params:,} parameters on {describe(self.mesh)}; {self.epochs} epochs of "
            f"{self.steps_per_epoch} steps of {config.batch_size} images; writing to {config.workdir}"
        )

    def _announce_epoch(self, rows: list[logs.Row]) -> None:
        def mean(name: str) -> float:
            return sum(row[name] for row in rows) / len(rows)

        accuracies = [row["val_accuracy"] for row in rows]
        spread = f" ({min(accuracies):.2%} to {max(accuracies):.2%} over {len(rows)} seeds)" if len(rows) > 1 else ""
        split = "Val" if self.dataset.selection_split == "validation" else "Val (the test set)"
        self.progress.say(
            f"Epoch {rows[0]['epoch']} - Loss: {mean('train_loss'):.4f}, Accuracy: {mean('train_accuracy'):.2%}, "
            f"{split}: {mean('val_accuracy'):.2%}{spread}"
        )

    def _announce_result(self, summary: dict[str, Any]) -> None:
        honest = summary["selection_split"] == "validation"
        selected = "validation accuracy" if honest else "selected on the test set itself; accuracy"
        for result in summary.get("seeds", [summary]):
            who = f"Seed {result['seed']}" if "seeds" in summary else "Done"
            self._say(
                f"{who} ({result['stopped_because']}): best epoch {result['best_epoch']} ({selected} "
                f"{result['val_accuracy']:.2%}), test accuracy {result['test_accuracy']:.2%}, "
                f"test loss {result['test_loss']:.4f}"
            )
        if "seeds" in summary:
            low, high = summary["test_accuracy_ci95"]
            self._say(
                f"Mean of {len(summary['seeds'])} seeds: test accuracy {summary['test_accuracy']:.2%}, standard "
                f"deviation {100 * summary['test_accuracy_std']:.2f} points, 95 % interval of the mean {low:.2%} to "
                f"{high:.2%}; their ensemble: {summary['ensemble']['test_accuracy']:.2%}"
            )
        self._say(
            f"{summary['epochs_run']} epochs in {summary['train_seconds']:.1f} s "
            f"({summary['images_per_second']:,.0f} images/s). Curves: tensorboard --logdir {self.config.workdir}"
        )
        if self.dataset.note:
            self._say(f"These figures are for 'digits', not for MNIST: {self.dataset.note}")
