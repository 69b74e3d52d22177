"""Put foreign files into directories, with the names that a run writes and others, and run every command on them.

Training, measuring and drawing are replaced by stand-ins, so that a directory takes a second; what writes, deletes,
refuses and goes on is the product's own.
"""

import contextlib
import dataclasses
import io
import random
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from PIL import Image

from mnist_flax import evaluate, export, import_weights, predict, report, train
from mnist_flax.data import Dataset, Examples
from mnist_flax.data.dataset import hold_out
from mnist_flax.errors import UserError
from mnist_flax.files import SIGN
from mnist_flax.inference import classifier, weights
from mnist_flax.model import MNISTNet
from mnist_flax.ops import Choice
from mnist_flax.state import EvalMetrics, TrainMetrics, TrainState
from mnist_flax.training import contents
from mnist_flax.training.mesh import to_host
from mnist_flax.training.records import model_card, summary_of
from mnist_flax.training.run import Progress, Run
from mnist_flax.training.run_files import RunFiles

EPOCHS = 3
OTHERS = ("photo.jpg", "thesis.docx", "notes/ä b.txt", "best/2024/photo.jpg", "last/1000/state/manifest.ocdbt", "x")
OTHERS += (
    "events.out.tfevents.1.other",
    "hparams/events.out.tfevents.2.other",
    "report/thesis.docx",
    "seed-7/data.txt",
)
OTHERS += ("best/damaged-1/x", "last/3.unfinished-1/_CHECKPOINT_METADATA", "best/3.orbax-checkpoint-tmp/x", ".lock")


def _dataset() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28), np.uint8)
    examples = Examples(images, np.arange(24, dtype=np.int32) % 10)
    return hold_out("digits", tuple(map(str, range(10))), examples, examples, 4)


def fit(run: Run, interruption: Any) -> dict[str, Any]:
    """What `loop.fit` writes, without training: each epoch adds one to the state."""
    replicas = len(run.seeds)
    with RunFiles(run) as files:
        variables = jax.tree.map(lambda x: np.stack([x] * replicas), classifier.load().variables)
        keys = jax.random.split(jax.random.key(0), replicas)
        step, tx = np.zeros(replicas, np.int32), optax.identity()
        states = TrainState(step, **variables, opt_state=(), key=keys, apply_fn=MNISTNet().apply, tx=tx)
        totals = jax.tree.map(lambda x: np.stack([x] * replicas), to_host(TrainMetrics.zero()))
        progress = Progress(states, totals, [()] * replicas)
        progress = files.restore(progress) or progress
        files.open_records(progress.histories, np.zeros((64, 28, 28), np.uint8))
        while (epoch := len(progress.histories[0]) + 1) <= run.epochs:
            if interruption.signal is not None and epoch > interruption.signal:
                raise SystemExit(143)
            numbers = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "learning_rate", "grad_norm"), 0.5)
            numbers |= {"val_accuracy": epoch / 10, "images_per_second": 1.0, "seconds": 1.0, "time": time.time()}
            row = {"epoch": epoch, "step": epoch, "val_images": 4, "selection_split": "validation", **numbers}
            state = progress.state.replace(step=np.full(replicas, epoch, np.int32))
            histories = [(*history, row) for history in progress.histories]
            progress = progress._replace(state=state, histories=histories, step=epoch)
            cards = {i: model_card(run, int(seed), row) for i, seed in enumerate(run.seeds)}
            files.save_epoch(progress, cards, range(replicas))
        _, cards = files.restore_best(progress)
        half: Any = mock.Mock(
            spec=EvalMetrics, accuracies=[0.5] * replicas, losses=[0.5] * replicas, ensemble_accuracy=0.5
        )
        summary = summary_of(run, progress.histories, cards, half)
        files.write_summary(summary, run.config.to_json())
    return summary


def _prepare(config: Any, dataset: Dataset, mesh: Any, kernels: Choice, *_: Any) -> Run:
    run = object.__new__(Run)
    training, options = mock.Mock(steps_per_epoch=1), mock.Mock(normalization=dataset.normalization)
    vars(run).update(config=config, dataset=dataset, mesh=mesh, kernels=kernels, teachers=None, training=training)
    vars(run).update(options=options)
    return run


def _pictures(*_: Any) -> dict[str, Figure]:
    names = (Path(name).stem.replace("-", " ").capitalize() for name in contents.REPORT if name.endswith(".png"))
    return {name: Figure((0.1, 0.1)) for name in names}


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Whatever takes long does nothing; all that touches files is as it is."""
    evaluation = mock.MagicMock(figures={"per_class": {}, "confusion_matrix": []})
    evaluation.__iter__.side_effect = lambda: iter(())
    page = mock.Mock(substitute=lambda **_: f'<meta name="generator" content="{SIGN}">')
    with contextlib.ExitStack() as stack:
        for name, value in {
            "mnist_flax.train._load": lambda config: _dataset(),
            "mnist_flax.train._kernels": lambda *_: Choice("xla", ""),
            "mnist_flax.training.loop.fit": fit,
            "mnist_flax.training.run.prepare": _prepare,
            "mnist_flax.inference.calibration._calibrated": lambda network, *_: classifier.Classifier(
                network.variables, {**network.card, "temperature": 0.5}
            ),
            "mnist_flax.views.report.measure": lambda *_, **__: evaluation,
            "mnist_flax.views.report.folder.load": lambda *_: _dataset(),
            "mnist_flax.views.report.charts.learning_curves": lambda *_: Figure((0.1, 0.1)),
            "mnist_flax.views.report._augmented": lambda *_: np.zeros((1, 8, 28, 28), np.uint8),
            "mnist_flax.views.report.sections": mock.MagicMock(curves=lambda *_: {}, mistakes=lambda *_: {}),
            "mnist_flax.views.report.Template": lambda *_: page,
            "mnist_flax.views.plots.of_network": _pictures,
            "mnist_flax.inference.evaluation.evaluate": lambda *_, **__: evaluation,
            "mnist_flax.inference.evaluation.describe": lambda *_: "",
            "mnist_flax.inference.formats.outputs_of": lambda *_: (
                lambda images: np.zeros((len(images), 10), np.float32)
            ),
        }.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        yield


@dataclasses.dataclass
class Trial:
    """A directory, and what in it must stay.

    Attributes:
        directory: of the trial; the run directory is `run` in it.
        foreign: the bytes of foreign files, by their paths; they stay where they are.
        damaged: the bytes of the files of damaged checkpoints, which stay somewhere.
        outcomes: how many commands did their work, and how many refused.
    """

    directory: Path
    foreign: dict[Path, bytes]
    damaged: list[bytes]
    outcomes: Counter[str]

    def lost(self) -> list[str]:
        """What is not there any more."""
        gone = [str(path) for path, data in self.foreign.items() if not path.is_file() or path.read_bytes() != data]
        found = Counter(path.read_bytes() for path in self.directory.rglob("*") if path.is_file())
        return gone + [f"a damaged checkpoint's {data[:20]!r}" for data in Counter(self.damaged) - found]

    def command(self, name: str, call: Callable[[], Any]) -> None:
        """Run a command; it may refuse, in a sentence."""
        try:
            call()
            self.outcomes["done"] += 1
        except (UserError, SystemExit) as error:
            stopped = isinstance(error, SystemExit) and error.code in (0, 1, 143)
            self.outcomes["done" if stopped else "refused"] += 1
        assert not self.lost(), f"{name} in {self.directory}: {self.lost()}"


def trial(directory: Path, rng: random.Random, commands: int = 4) -> Trial:
    """Files of others in a directory that has a run or none, then a few commands.

    Raises:
        AssertionError: a file was lost.
    """
    run, seeds = directory / "run", rng.choice((1, 1, 2))
    given = ["--dataset", "digits", "--epochs", str(EPOCHS), "--num-seeds", str(seeds), "--workdir", str(run)]
    given += rng.choice(([], ["--no-report"]))
    made = Trial(directory, {}, [], Counter())
    template = _a_run(directory / "template", seeds)
    shutil.copytree(template, run) if (before := rng.random()) < 0.6 else run.mkdir(parents=True)
    names = [path.relative_to(template).as_posix() for path in template.rglob("*") if path.is_file()]
    if before < 0.6:
        _change(run, rng, made)
    for name in rng.sample([*rng.sample(names, 5), *OTHERS], rng.randint(2, 8)):
        path = run / name.replace("seed-0", rng.choice(("seed-0", "seed-3")))
        if not path.exists() or (not made.damaged and rng.random() < 0.5):  # in the place of ours
            with contextlib.suppress(OSError):  # a file is where a folder would have to be
                damages = path.exists() and {"best", "last"} & set(path.parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(rng.randbytes(rng.randint(1, 300)))
                if damages:
                    made.damaged.append(path.read_bytes())  # in a checkpoint, which is set aside
                else:
                    made.foreign[path] = path.read_bytes()
    Image.new("L", (28, 28)).save(directory / "drawn.png")
    outputs = [directory / "run/network.safetensors", directory / "out.safetensors", run / "report/new.safetensors"]
    if rng.random() < 0.5:
        outputs[1].write_bytes(b"somebody else's")
        made.foreign[outputs[1]] = outputs[1].read_bytes()
    pytorch = directory / "template/pytorch.safetensors"
    all_commands: dict[str, Callable[[], Any]] = {
        "train": lambda: train.train(train.parse(given)),
        "train --overwrite": lambda: train.train(train.parse([*given, "--overwrite"])),
        "train --overwrite, one seed": lambda: train.train(train.parse([*given, "--overwrite", "--num-seeds", "1"])),
        "report": lambda: report.main([str(run)]),
        "report elsewhere": lambda: report.main([str(template), "--output", str(run / "report")]),
        "evaluate": lambda: evaluate.main([str(run), "--save-plots", str(run / "report")]),
        "export": lambda: export.main([str(template), "--format", "safetensors", "--output", str(rng.choice(outputs))]),
        "import": lambda: import_weights.main([str(pytorch), "--output", str(rng.choice(outputs))]),
        "predict": lambda: predict.main([str(directory / "drawn.png"), "--annotate", str(run / "report")]),
    }
    train_most = rng.choices([*all_commands], [6, 4, 2, 2, 1, 1, 1, 1, 1], k=commands)
    for name in train_most:
        made.command(name, all_commands[name])
    return made


def _a_run(directory: Path, seeds: int) -> Path:
    """A finished run, made once for all trials."""
    workdir = directory.parent.parent / f"a run of {seeds}"
    if not workdir.exists():
        train.train(
            train.parse(
                ["--dataset", "digits", "--epochs", str(EPOCHS), "--num-seeds", str(seeds), "--workdir", str(workdir)]
            )
        )
    directory.mkdir(parents=True)
    network = classifier.load(workdir)
    export.main([str(workdir), "--format", "pytorch", "--output", str(directory / "pytorch.safetensors")])
    weights.save(directory / "shipped.safetensors", network.variables, network.card, network.reference)
    return workdir


def _change(run: Path, rng: random.Random, made: Trial) -> None:
    """What may become of a run: unfinished, a checkpoint damaged, sums lost, `last` gone."""
    if rng.random() < 0.7:
        (run / "summary.json").unlink()
    checkpoints = sorted(path.parent for path in run.rglob("SHA256SUMS"))
    damaged = rng.choice([None, *checkpoints])
    if damaged is not None:
        file = rng.choice([path for path in damaged.rglob("*") if path.is_file() and path.stat().st_size])
        file.write_bytes(rng.choice((b"", file.read_bytes()[:-1], b"?" + file.read_bytes()[1:])))
        made.damaged += [path.read_bytes() for path in damaged.rglob("*") if path.is_file()]
    elif rng.random() < 0.5:
        (rng.choice(checkpoints) / "SHA256SUMS").unlink()
    elif rng.random() < 0.3:
        shutil.rmtree(run / "last")


def main(number: int, directory: Path, seed: int = 0) -> None:
    """Try so many directories, and print what came of it."""
    files, outcomes = 0, Counter[str]()
    with stand_ins():
        for i in range(number):
            made = trial(directory / f"foreign{i}", random.Random(seed + i))
            files, outcomes = files + len(made.foreign), outcomes + made.outcomes
            shutil.rmtree(made.directory)
    print(
        f"{number} directories with {files} foreign files: {outcomes.total()} commands, of which {outcomes['refused']} "
        "refused; 0 files lost"
    )
