"""`python -m mnist_flax.train`: train, select, stop early, checkpoint, resume, test once.

JAX is imported once the options are known to be good, so that `--help` and mistakes are answered at once.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import simple_parsing

from mnist_flax.cli import ArgumentParser, command, is_whole_process, use_compilation_cache
from mnist_flax.config import NAMES, Config, ResolvedConfig, require_dataset, validate
from mnist_flax.errors import UserError
from mnist_flax.files import local_path
from mnist_flax.presets import defaults, resolve
from mnist_flax.training import contents, run_directory, signals

if TYPE_CHECKING:
    from mnist_flax.data import Dataset
    from mnist_flax.ops import Choice


class _TrainParser(ArgumentParser, simple_parsing.ArgumentParser):
    """Options from a dataclass, mistakes in one sentence."""


def _parser(default: Any, **options: Any) -> _TrainParser:
    """The command line's parser; `default`, a `Config` or argparse.SUPPRESS, has the options that are not given."""
    parser = _TrainParser(
        "train",
        "Train the 12,534-parameter network. Run the same command again to resume.",
        "--preset best --num-seeds 3 --workdir runs/best",
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
        argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
        **options,
    )
    parser.add_argument("--config", dest="file", type=local_path, help="repeat the run whose config.json this is")
    parser.add_arguments(Config, dest="config", default=default)
    return parser


def parse(arguments: Sequence[str]) -> Config:
    """The command line as a validated `Config`; `defaults`, or a run's config.json, gives the options left out.

    Raises:
        UserError: an option is unknown or its value makes no sense.
    """
    options, rest = _parser(argparse.SUPPRESS, add_help=False).parse_known_args(arguments)
    given: dict[str, Any] = getattr(options, "config", {})
    asked = Config(**given)
    default = defaults(asked.preset, asked.dataset, asked.initial_weights)
    if options.file is not None:
        default = run_directory.read_config(options.file)
    if rest:  # --help, which shows the defaults, or a mistake
        _parser(default).parse_args(arguments)
    config = dataclasses.replace(default, **given)
    validate(config)
    return config


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    config = parse(arguments)
    grace = signals.GRACE + signals.LEAVE_SECONDS * config.distributed if is_whole_process() else None
    with signals.answered(grace) as interruption, ExitStack() as job:
        if config.distributed:
            from mnist_flax.training.distributed import leaving_at_once

            job.enter_context(leaving_at_once())
        train(config, interruption)


def train(config: Config, interruption: signals.Interruption | None = None) -> dict[str, Any]:
    """Train as `config` says, or go on from where its run directory stopped; returns the run's summary.

    Raises:
        UserError: something is wrong that the user can put right; nothing is lost.
        SystemExit: a signal asked the run to stop; it has saved and said how to go on.
        StoppedError: a signal came where there was nothing to save.
    """
    require_dataset(config.dataset)
    _require_apart(config)
    with run_directory.made(config.workdir):
        run_directory.require_free(config)
        from mnist_flax.training.devices import usual_modes

        with usual_modes():
            return _train(config, interruption or signals.Interruption())


def _train(config: Config, interruption: signals.Interruption) -> dict[str, Any]:
    """Load, resolve, prepare, train and test, calibrate, report; with JAX in its usual modes."""
    import jax

    from mnist_flax.training import distributed
    from mnist_flax.training.devices import require_memory
    from mnist_flax.training.loop import fit
    from mnist_flax.training.mesh import make_mesh, wait_for_all
    from mnist_flax.training.records import read_summary
    from mnist_flax.training.run import prepare

    if not config.no_compilation_cache:
        use_compilation_cache()
    if config.distributed:
        distributed.join()
    dataset = _load(config)
    held_out = 0 if dataset.selection_split == "test" else len(dataset.validation.labels)
    config = resolve(config, dataset.name, len(dataset.train.labels), held_out)
    if config.distributed:
        distributed.require_agreement(config, dataset)
    mesh = make_mesh(config.batch_size, config.num_devices, config.num_seeds)
    require_memory(mesh, config.batch_size, config.num_seeds, len(dataset.train.labels))
    is_main = jax.process_index() == 0
    kernels = _kernels(config, mesh.devices.flat[0].platform, is_main)
    initial, teachers = _initial(config, dataset), _teachers(config, dataset)
    with run_directory.lock(config) if is_main else nullcontext():
        wait_for_all("the run directory is locked")
        summary = read_summary(config.workdir)
        if summary is None:
            run = prepare(config, dataset, mesh, kernels, initial, teachers)
            summary = fit(run, interruption)
        elif is_main:
            print(_finished(config, summary), flush=True)
        if is_main:  # also of a finished run: it may have been stopped before this
            _calibrate(config, dataset)
            _report(config, dataset)
    return summary


def _require_apart(config: Config) -> None:
    """Refuse a run directory in the data set's folder: the run's files would be read as data."""
    workdir, data = config.workdir.resolve(), Path(config.dataset).resolve()
    if config.dataset not in NAMES and (workdir.is_relative_to(data) or data.is_relative_to(workdir)):
        raise UserError(
            f"--workdir {config.workdir} and --dataset {config.dataset}: one contains the other; choose a --workdir "
            "elsewhere"
        )


def _load(config: Config) -> "Dataset":
    """The data set. The reader of image files is imported only for a folder of them."""
    if config.dataset in NAMES:
        from mnist_flax.data import load
    else:
        from mnist_flax.reading.folder import load
    return load(config.dataset, config.data_dir, config.val_size)


def _initial(config: ResolvedConfig, dataset: "Dataset") -> "Callable[[], dict[str, Any]] | None":
    """A function that loads the trained weights to start from; None if there are none.

    A run that goes on does not call it. For a new run they are loaded at once, so that a mistake is answered before
    anything is written or deleted.
    """
    if config.initial_weights is None:
        return None
    from mnist_flax.inference.transfer import initial_variables

    load = functools.cache(functools.partial(initial_variables, config.initial_weights, dataset.class_names))
    if config.overwrite or not contents.has_checkpoints(config.workdir):
        load()
    return load


def _teachers(config: Config, dataset: "Dataset") -> dict[str, Any] | None:
    """The variables of the networks that teach, if any do; a finished run needs none any more."""
    from mnist_flax.training.records import read_summary

    if config.teacher is None or (not config.overwrite and read_summary(config.workdir)):
        return None
    if Path(config.teacher).resolve().is_relative_to(config.workdir.resolve()):
        raise UserError(f"--teacher {config.teacher} is in the new run's own directory; choose another --workdir")
    from mnist_flax.inference.transfer import teachers

    return teachers(config.teacher, dataset)


def _kernels(config: Config, platform: str, is_main: bool) -> "Choice":
    """What computes the network: the same in all processes of a job."""
    import numpy as np

    from mnist_flax import ops
    from mnist_flax.training.mesh import process_values

    say = functools.partial(print, flush=True) if is_main else lambda sentence: None
    chosen = ops.choose(config.kernels, platform, not config.no_compilation_cache, say)
    if process_values(np.array(chosen.name == "native")).all() or chosen.name == "xla":
        return chosen
    return ops.Choice("xla", "another process of the job has none")


def _calibrate(config: Config, dataset: "Dataset") -> None:
    """Calibrate the networks of a finished run; imported only then, so that no start waits for it."""
    from mnist_flax.inference.calibration import calibrate_run
    from mnist_flax.reading.reader import redraw

    calibrate_run(config, dataset, redraw)


def _report(config: Config, dataset: "Dataset") -> None:
    """Draw a finished run's report, unless that is done or not wanted; imported only then, for the same reason.

    Raises:
        UserError: it cannot be drawn. Nothing else is lost, and the same command draws it.
    """
    directory = config.workdir / "report"
    if config.no_report or (directory / "report.html").exists():
        return
    try:
        from mnist_flax.views.report import write_report

        page = write_report([config.workdir], directory, config.data_dir, dataset)
    except Exception as error:
        reason = f"{error}" if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"the report could not be drawn ({reason}). The run in {config.workdir} is finished and whole: run the "
            "same command again to draw the report alone, or with --no-report to leave it out"
        ) from error
    print(f"Report         {page}")


def _finished(config: Config, summary: dict[str, Any]) -> str:
    return (
        f"{config.workdir} holds a finished run: test accuracy {summary['test_accuracy']:.2%} on {summary['dataset']} "
        f"after {summary['epochs_run']} epochs. Nothing was trained: choose another --workdir to train again; "
        "--overwrite would delete this run."
    )


if __name__ == "__main__":
    main()
