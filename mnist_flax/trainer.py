"""The training loop: epochs of `step.train_steps`, selection, early stopping, checkpoints, the final test.

The numbers come from pure functions; what this file adds is their order and the side effects between them.
"""

import functools
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from mnist_flax import augment, logs
from mnist_flax.checkpoint import Checkpoints, resumable
from mnist_flax.config import Config
from mnist_flax.data import Dataset, Examples
from mnist_flax.errors import UserError
from mnist_flax.mesh import REPLICATED, SPLIT_BATCHES, compile_per_device, replicate, split_batches
from mnist_flax.model import MNISTNet, count_parameters, init_variables
from mnist_flax.optim import make_optimizer, one_cycle
from mnist_flax.step import AXIS, StepOptions, Totals, TrainState, epoch_order, evaluate, train_steps

if TYPE_CHECKING:
    from mnist_flax.train import Interruption

EVALUATION_BATCH = 1000
# Steps per dispatch on a CPU: a fraction of a second, so that the progress bar moves and Ctrl-C is answered. On an
# accelerator it is a whole epoch, since there a step is shorter than a round trip to the host.
CPU_CHUNK = 16
# For programs that run once. Random numbers are slow to compile and quick to run: the initial state takes 7 s to
# compile on two cores with XLA's optimizations and 0.7 s without, and its bits are the same.
RUN_ONCE = {"xla_backend_optimization_level": 0}


def create_state(config: Config, total_steps: int) -> TrainState:
    """The state before the first step."""
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    tx = make_optimizer(total_steps, config.max_lr, config.clip_norm)
    return TrainState.create(init_variables(init_key), run_key, MNISTNet(axis_name=AXIS).apply, tx)


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


class Trainer:
    """One run: its state, its compiled programs and its files."""

    def __init__(self, config: Config, dataset: Dataset, mesh: Mesh, interruption: "Interruption") -> None:
        self.config, self.dataset, self.mesh, self.interruption = config, dataset, mesh, interruption
        self.is_main = jax.process_index() == 0
        self.epochs = config.epochs or 0
        num_train = len(dataset.train.labels)
        self.steps_per_epoch = -(-num_train // config.batch_size)
        total_steps = self.epochs * self.steps_per_epoch
        self.chunk = CPU_CHUNK if jax.default_backend() == "cpu" else self.steps_per_epoch
        self.learning_rate, _ = one_cycle(total_steps, config.max_lr)
        self.normalization = dataset.normalization
        self.augmentation = augment.Augmentation(
            config.rotation, config.translation, (config.scale_min, config.scale_max)
        )

        replicated = NamedSharding(mesh, REPLICATED)
        self.state: TrainState = jax.jit(
            functools.partial(create_state, config, total_steps), out_shardings=replicated, compiler_options=RUN_ONCE
        )()
        self.totals: Totals = replicate(Totals.zero(), mesh)
        self.history: list[logs.Row] = []
        self.epoch_seconds = 0.0

        options = StepOptions(config.batch_size, self.normalization, self.augmentation, config.label_smoothing)
        self._order = compile_per_device(
            functools.partial(epoch_order, num_examples=num_train, steps_per_epoch=self.steps_per_epoch), mesh
        )
        self._steps: Any = compile_per_device(functools.partial(train_steps, options=options), mesh, donate=(0, 1))
        self._evaluate = compile_per_device(
            functools.partial(evaluate, apply_fn=MNISTNet().apply, normalization=self.normalization),
            mesh,
            in_specs=(REPLICATED, SPLIT_BATCHES),
        )
        self.train_examples: Examples = replicate(dataset.train, mesh)
        self.validation_batches = split_batches(dataset.validation, EVALUATION_BATCH, mesh)

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """All that is left of the run; returns its summary."""
        self.best = Checkpoints(self.config.workdir / "best")
        self.last = Checkpoints(self.config.workdir / "last")
        self._announce()
        self._restore()
        self.tensorboard = logs.TensorBoard(self.config.workdir, self.history) if self.is_main else None
        if self.tensorboard:
            self.tensorboard.add_grid("augmented", self._augmented_samples(), columns=8)
        if stop_reason(self.history, self.config) is None:
            self._compile()
        self.progress = logs.Progress(
            self.epochs * self.steps_per_epoch * self.config.batch_size,
            int(self.state.step) * self.config.batch_size,
            show=self.is_main,
        )
        try:
            while stop_reason(self.history, self.config) is None:
                self._epoch()
            return self._finish()
        finally:
            self.progress.close()
            self.best.close()
            self.last.close()
            if self.tensorboard:
                self.tensorboard.close()

    def _compile(self) -> None:
        """Compile the training program ahead of its first call, so that no epoch's time contains it."""
        started = time.perf_counter()
        arguments = self.state, self.totals, self.train_examples, self._order(self.state), np.int32(0)
        self._steps = self._steps.lower(*arguments).compile()
        self._say(f"Compiled in {time.perf_counter() - started:.1f} s")

    def _epoch(self) -> None:
        """Train to the end of the epoch the state is in, evaluate, checkpoint, record."""
        order, totals = self._order(self.state), self.totals
        done = int(self.state.step) % self.steps_per_epoch
        while done < self.steps_per_epoch:
            started = time.perf_counter()
            num_steps = min(self.chunk, self.steps_per_epoch - done)
            self.state, self.totals = self._steps(
                self.state, self.totals, self.train_examples, order, np.int32(num_steps)
            )
            totals = jax.device_get(self.totals)
            self.epoch_seconds += time.perf_counter() - started
            if not totals.finite:
                raise UserError(self._not_finite(totals))
            done += num_steps
            self.progress.advance(
                len(self.history) + 1,
                self.epochs,
                num_steps * self.config.batch_size,
                totals.loss / totals.steps,
                totals.correct / (totals.steps * self.config.batch_size),
            )
            if done < self.steps_per_epoch:
                self._stop_if_asked()

        row = self._row(totals, *self._loss_and_accuracy(self.state.variables, self.validation_batches))
        self.history.append(row)
        self.totals, self.epoch_seconds = replicate(Totals.zero(), self.mesh), 0.0
        if best_epoch(self.history) == row["epoch"]:
            self.best.save(row["step"], self.state.variables, self._model_card(row))
        self._save()
        if self.is_main:
            logs.write_history(self.config.workdir / "metrics.jsonl", self.history)
            assert self.tensorboard is not None
            self.tensorboard.add_epoch(row)
        split = "Val" if self.dataset.selection_split == "validation" else "Val (the test set)"
        self.progress.say(
            f"Epoch {row['epoch']} - Loss: {row['train_loss']:.4f}, Accuracy: {row['train_accuracy']:.2%}, "
            f"{split}: {row['val_accuracy']:.2%}"
        )
        if stop_reason(self.history, self.config) is None:
            self._stop_if_asked()

    def _loss_and_accuracy(self, variables: Any, batches: Examples) -> tuple[float, float]:
        # Divided here, in float64: 9,940 of 10,000 is to be 0.994, not the float32 next to it.
        sums = jax.device_get(self._evaluate(variables, batches))
        return float(sums["loss"]) / int(sums["count"]), int(sums["correct"]) / int(sums["count"])

    def _finish(self) -> dict[str, Any]:
        """Test the best checkpoint, once, and write the summary."""
        restored = self.best.restore(like=self.state.variables)
        if restored is None:
            raise UserError(f"{self.best.directory} has lost its checkpoints; pass --overwrite to train again")
        variables, card = restored
        test_batches = split_batches(self.dataset.test, EVALUATION_BATCH, self.mesh)
        test_loss, test_accuracy = self._loss_and_accuracy(variables, test_batches)
        seconds = sum(row["seconds"] for row in self.history)
        summary = {
            "dataset": self.dataset.name,
            "dataset_note": self.dataset.note,
            "preset": self.config.preset,
            "seed": self.config.seed,
            "num_params": count_parameters(self.state.params),
            "epochs_run": len(self.history),
            "stopped_because": stop_reason(self.history, self.config),
            "best_epoch": card["epoch"],
            "selection_split": self.dataset.selection_split,
            "val_accuracy": card["val_accuracy"],
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "train_seconds": seconds,
            "images_per_second": len(self.history) * self.steps_per_epoch * self.config.batch_size / seconds,
            "devices": f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}",
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets")},
            },
        }
        if self.is_main:
            assert self.tensorboard is not None
            result = {name: summary[name] for name in ("val_accuracy", "test_accuracy", "test_loss")}
            self.tensorboard.add_result(self.config.to_json(), result)
            logs.write_json(self.config.workdir / "summary.json", summary)
        self._announce_result(summary)
        return summary

    # -- resuming and stopping -------------------------------------------------------------------------------------

    def _save(self) -> None:
        metadata = {"history": self.history, "epoch_seconds": self.epoch_seconds}
        self.last.save(int(self.state.step), {"state": resumable(self.state), "totals": self.totals}, metadata)

    def _restore(self) -> None:
        """Take up where the newest `last` checkpoint stopped, if there is one."""
        restored = self.last.restore(like={"state": resumable(self.state), "totals": self.totals})
        if restored is not None:
            arrays, metadata = restored
            self.state = self.state.replace(**arrays["state"])
            self.totals = Totals(*arrays["totals"])
            self.history, self.epoch_seconds = metadata["history"], metadata["epoch_seconds"]
            epoch, step = divmod(int(self.state.step), self.steps_per_epoch)
            self._say(f"Resuming after epoch {epoch}" + (f" and {step} steps" if step else ""))
        # A run killed between its two saves redoes the epoch that its newest `best` came from.
        self.best.discard_after(int(self.state.step))

    def _stop_if_asked(self) -> None:
        """Save and exit if this process, or any other of the job, has been sent a signal."""
        number = self.interruption.signal or 0
        if jax.process_count() > 1:
            number = int(multihost_utils.process_allgather(np.int32(number)).max())
        if not number:
            return
        if self.last.latest_step() != int(self.state.step):
            self._save()
        self.progress.close()
        self._say(f"Saved after step {int(self.state.step)}. Run the same command again to go on.")
        raise SystemExit(128 + number)

    def _not_finite(self, totals: Totals) -> str:
        step = int(self.state.step) - 1
        learning_rate = float(self.learning_rate(jnp.int32(step)))
        return (
            f"loss {totals.last_loss} and gradient norm {totals.last_grad_norm} in step {step} (epoch "
            f"{len(self.history) + 1}, learning rate {learning_rate:.3g}) are not finite numbers: training has "
            f"diverged; lower --max-lr and choose a new --workdir (the last good checkpoint stays in "
            f"{self.last.directory})"
        )

    # -- records ---------------------------------------------------------------------------------------------------

    def _row(self, totals: Totals, val_loss: float, val_accuracy: float) -> logs.Row:
        images = self.steps_per_epoch * self.config.batch_size
        step = int(self.state.step)
        return {
            "epoch": len(self.history) + 1,
            "step": step,
            "train_loss": float(totals.loss) / self.steps_per_epoch,
            "train_accuracy": int(totals.correct) / images,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "selection_split": self.dataset.selection_split,
            "learning_rate": float(self.learning_rate(jnp.int32(step - 1))),
            "grad_norm": float(totals.grad_norm) / self.steps_per_epoch,
            "images_per_second": images / self.epoch_seconds,
            "seconds": self.epoch_seconds,
            "time": time.time(),
        }

    def _model_card(self, row: logs.Row) -> dict[str, Any]:
        """What someone who finds only the `best` checkpoint needs to know."""
        return {
            "dataset": self.dataset.name,
            "class_names": list(self.dataset.class_names),
            "normalization": self.normalization._asdict(),
            "config": self.config.to_json(),
            **{name: row[name] for name in ("epoch", "step", "val_accuracy", "val_loss", "selection_split")},
        }

    def _augmented_samples(self) -> np.ndarray:
        images = jnp.asarray(self.dataset.train.images[:64])
        warp = jax.jit(augment.augment, static_argnums=2, compiler_options=RUN_ONCE)
        return np.asarray(warp(jax.random.key(self.config.seed), images, self.augmentation)).round().astype(np.uint8)

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
        self._say(
            f"{count_parameters(self.state.params):,} parameters on {self.mesh.size} x "
            f"{self.mesh.devices.flat[0].device_kind}; {self.epochs} epochs of {self.steps_per_epoch} steps of "
            f"{config.batch_size} images; writing to {config.workdir}"
        )

    def _announce_result(self, summary: dict[str, Any]) -> None:
        honest = summary["selection_split"] == "validation"
        selected = "validation accuracy" if honest else "selected on the test set itself; accuracy"
        self._say(
            f"Done ({summary['stopped_because']}): best epoch {summary['best_epoch']} ({selected} "
            f"{summary['val_accuracy']:.2%}), test accuracy {summary['test_accuracy']:.2%}, "
            f"test loss {summary['test_loss']:.4f}"
        )
        self._say(
            f"{summary['epochs_run']} epochs in {summary['train_seconds']:.1f} s "
            f"({summary['images_per_second']:,.0f} images/s). Curves: tensorboard --logdir {self.config.workdir}"
        )
        if self.dataset.note:
            self._say(f"These figures are for 'digits', not for MNIST: {self.dataset.note}")
