"""Builds the report of runs: one HTML file that needs no other, and its pictures as PNGs beside it."""

from pathlib import Path
from string import Template

import jax
import numpy as np
from jaxtyping import UInt8

from mnist_flax.augment import augment
from mnist_flax.config import Config
from mnist_flax.data import Dataset
from mnist_flax.errors import UserError
from mnist_flax.files import SIGN, require_ours, write_text
from mnist_flax.inference import classifier
from mnist_flax.inference.classifier import Classifier
from mnist_flax.inference.evaluation import measure
from mnist_flax.reading import folder
from mnist_flax.training import contents
from mnist_flax.training.devices import usual_modes
from mnist_flax.training.mesh import FAST_COMPILE
from mnist_flax.training.programs import augmentation_of
from mnist_flax.views import charts, html, plots, runs, sections
from mnist_flax.views.html import Html, element

_TEMPLATE = Path(__file__).with_name("report.html")
_SAMPLES = 8


@usual_modes()
def write_report(
    paths: list[Path], output: Path, data_dir: Path | None = None, dataset: Dataset | str | None = None
) -> Path:
    """Write `output`/report.html, which needs no other file, and its pictures beside it as PNGs.

    Learning curves are those of all runs; the rest is of the first run's best network. `dataset` is what that was
    trained on, if it is loaded, or where it is now.

    Raises:
        UserError: a run or the data it was trained on cannot be read; or a file is in the way that is not ours.
    """
    require_ours(*(output / Path(name).name for name in contents.REPORT))
    every = [runs.read_run(path) for path in paths]
    first, histories = every[0], runs.histories(every)
    network = classifier.load(first.path)
    recorded = first.recorded or contents.recorded(network.card["config"])
    config = recorded.config
    if not isinstance(dataset, Dataset):
        dataset = _trained_on(network, dataset, data_dir, config.val_size)
    dataset = dataset.relabelled(network.class_names)
    evaluation = measure(network, dataset.test, 0)
    images = dataset.train.images[:_SAMPLES]
    samples = _augmented(images, config)
    figures = {
        "Learning curves": charts.learning_curves(histories),
        **plots.of_network(*evaluation),
        "Augmentation": plots.image_grid(samples.reshape(-1, *samples.shape[2:])),
    }
    names = ", ".join(str(run.path) for run in every)
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        sign=SIGN,
        title=html.escape(names),
        heading=html.escape(first.path.resolve().name),
        notes=sections.notes(first, config, dataset),
        scores=sections.scores(first, evaluation.figures),
        facts=sections.facts(first, config, dataset, network),
        commands=runs.commands(first, recorded),
        runs=_section("Runs compared", runs.run_table(every)) if len(every) > 1 else "",
        seeds=_section("Every seed", runs.seed_table(first, len(dataset.test.labels))) if len(first.seeds) > 1 else "",
        network=sections.which(first, network, evaluation.figures, len(every) > 1),
        classes=sections.classes(evaluation.figures["per_class"]),
        confusion=sections.confusion(np.array(evaluation.figures["confusion_matrix"]), network.class_names),
        reliability=sections.reliability(dataset.test.labels, evaluation.log_probabilities),
        augmentation=sections.augmentation(images, samples, recorded),
        filters=sections.filters(plots.first_kernel(network)),
        activations=sections.activations(network, dataset.test),
        **sections.curves(histories),
        **sections.mistakes(dataset.test, evaluation.log_probabilities, network.class_names),
    )
    plots.save(figures, output)
    path = output / "report.html"
    write_text(path, page)  # last: where it is, the report is whole
    return path


def _trained_on(network: Classifier, name: str | None, data_dir: Path | None, val_size: int | None) -> Dataset:
    """The data that a network was trained on, from where it is now, if that has a name.

    Raises:
        UserError: it is not there, or it is other data.
    """
    dataset = folder.load(name or network.card["dataset"], data_dir, val_size)
    if name and not network.was_trained_on(dataset):
        raise UserError(f"--dataset {name} is not the data that the run was trained on, {network.card['dataset']}")
    return dataset


def _section(title: str, content: Html) -> Html:
    return element("section", element("h2", title), content)


def _augmented(images: UInt8[np.ndarray, "n 28 28"], config: Config) -> UInt8[np.ndarray, "n copies 28 28"]:
    """Images as a run augments them at its start, eight times each."""
    warp = jax.jit(augment, static_argnums=2, compiler_options=FAST_COMPILE)
    copies = warp(jax.random.key(0), np.repeat(images, _SAMPLES, axis=0), augmentation_of(config))
    return np.asarray(copies).round().astype(np.uint8).reshape(len(images), _SAMPLES, *images.shape[1:])
