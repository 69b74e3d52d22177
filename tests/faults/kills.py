"""Kill a training run again and again, at moments of every kind, and compare its result with that of a run left alone.

A run on `digits` is killed by SIGKILL and started again, ten times and then to the end. What it leaves is compared bit
for bit with what a run leaves that was never stopped: parameters of every checkpoint, metrics, TensorBoard scalars.
Instead of SIGKILL it can be SIGTERM and Ctrl-C's SIGINT, also while a run loads, compiles and draws its report.
"""

import argparse
import functools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OPTIONS = ["--dataset=digits", "--epochs=8", "--patience=0", "--checkpoint-every-seconds=0.2"]
NO_REPORT = "--no-report"
KILLS_A_RUN = 10
# By which a run is asked to stop; SIGKILL does not ask.
ASKED = (signal.SIGTERM, signal.SIGINT)
# Kinds of moment: what a run is doing when it is killed.
MOMENTS = ("evaluation", "write of best", "write of last", "records", "final test", "calibration", "steps")
START = "start"
# What else can be asked to stop.
STAGES = ("loading", "compilation", "report")
TIMES = ("time", "seconds", "images_per_second")


# By thread the kinds of the functions that are running, the innermost last.
at_work: defaultdict[int, list[str]] = defaultdict(list)
steps_begun = 0


def tell_moments() -> None:
    """Make the functions of a run tell when they are at work."""
    from mnist_flax import train as command
    from mnist_flax.inference import calibration
    from mnist_flax.training import loop, run_files
    from mnist_flax.training.checkpoint import Checkpoints
    from mnist_flax.training.programs import EvaluationProgram, TrainingProgram

    def telling(function: Any, kind: Callable[..., str]) -> Any:
        @functools.wraps(function)
        def told(*arguments: Any, **options: Any) -> Any:
            kinds = at_work[threading.get_ident()]
            kinds.append(kind(*arguments))
            try:
                return function(*arguments, **options)
            finally:
                kinds.pop()

        return told

    def counting(function: Any) -> Any:
        @functools.wraps(function)
        def counted(program: Any, state: Any, totals: Any, plan: Any, num_steps: Any) -> Any:
            global steps_begun
            steps_begun = int(state.step[0]) + int(num_steps[0])
            return function(program, state, totals, plan, num_steps)

        return counted

    def tell(owner: Any, name: str, kind: Callable[..., str]) -> None:
        setattr(owner, name, telling(getattr(owner, name), kind))

    tell(EvaluationProgram, "__call__", lambda *_: "evaluation")
    tell(Checkpoints, "save", lambda checkpoints, *_: f"write of {checkpoints.directory.name}")
    tell(run_files, "write_history", lambda *_: "records")
    tell(run_files.TensorBoard, "add_epoch", lambda *_: "records")
    tell(loop, "test_best", lambda *_: "final test")
    tell(calibration, "calibrate_run", lambda *_: "calibration")
    tell(loop, "to_host", lambda *_: "steps")  # which waits for them
    tell(command, "_load", lambda *_: "loading")
    tell(TrainingProgram, "compile", lambda *_: "compilation")
    tell(command, "_report", lambda *_: "report")
    TrainingProgram.__call__ = counting(TrainingProgram.__call__)


def moments() -> list[str]:
    """What the run is doing; an epoch's files are written while the next one is trained."""
    return [kind for kinds in list(at_work.values()) for kind in kinds[-1:]] or [START]


def die_in(wanted: str, seed: int, record: Path, number: int) -> None:
    """Wait, in a thread of the run, for a moment of the wanted kind; record what is cut short, and send the signal."""
    rng = random.Random(seed)
    while wanted != START and moments() == [START]:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 3 if wanted == START else 0 if wanted in STAGES else 1))
    while wanted not in (START, *moments()):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 2 if wanted == "report" else 0.02))
    found = moments()
    hit = wanted if wanted in found else found[-1]
    record.write_text(json.dumps({"wanted": wanted, "hit": hit, "steps": steps_begun, "at": time.time()}))
    os.kill(os.getpid(), number)


def train(workdir: Path, *arguments: str) -> int:
    """A training process to its end, in its own words if that is a bad one; its exit status as a shell has it."""
    command = [sys.executable, "-m", "faults.kills", *arguments, "--workdir", str(workdir)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tests)
    status = 128 - done.returncode if done.returncode < 0 else done.returncode
    if status not in (0, *(128 + number for number in (*ASKED, signal.SIGKILL))) or "Traceback" in done.stderr:
        raise RuntimeError(f"exit status {status} of {' '.join(command)}:\n{done.stdout}{done.stderr}")
    return status


def records(workdir: Path) -> dict[str, Any]:
    """All that a run leaves behind, but for the wall-clock figures."""
    import jax
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mnist_flax.config import Config
    from mnist_flax.inference.weights import load_run
    from mnist_flax.step import TrainMetrics
    from mnist_flax.training.checkpoint import find, read, resumable
    from mnist_flax.training.mesh import FAST_COMPILE
    from mnist_flax.training.programs import create_state
    from mnist_flax.training.records import read_history

    variables, card, reference = load_run(workdir)
    config = Config.from_json(json.loads((workdir / "config.json").read_text()))
    create = functools.partial(create_state, config=config, total_steps=1)
    state = jax.jit(create, compiler_options=FAST_COMPILE)(np.uint32(config.seed))
    like = jax.tree.map(lambda x: x[None], {"state": resumable(state), "totals": TrainMetrics.zero()})
    last, _ = read(find(workdir / "last"), like)
    last["state"]["key"] = jax.random.key_data(last["state"]["key"])
    rows = read_history(workdir)
    events = EventAccumulator(str(workdir))
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {
        "arrays": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((variables, last, reference))],
        "card": {name: card[name] for name in ("epoch", "step", "val_accuracy", "val_loss", "temperature")},
        "metrics": [{name: value for name, value in row.items() if name not in TIMES} for row in rows],
        "scalars": {tag: values for tag, values in scalars.items() if tag not in TIMES},
    }


def latest_step(workdir: Path) -> int:
    """The step a killed run will go on from."""
    from mnist_flax.training.checkpoint_files import SUMS

    return max(
        (int(path.parent.name) for path in workdir.glob(f"last/*[0-9]/{SUMS}") if path.parent.name.isdecimal()),
        default=0,
    )


def kill_and_resume(
    num_kills: int, directory: Path, seed: int = 0, numbers: Sequence[int] = (signal.SIGKILL,)
) -> list[dict[str, Any]]:
    """Kills by the signals `numbers` in turn, and what each cost.

    Raises:
        AssertionError: a run that was killed did not end as the one that was not.
    """
    asked = tuple(numbers) == ASKED
    kinds, options = ([*MOMENTS, START, *STAGES], []) if asked else ([*MOMENTS, START], [NO_REPORT])
    train(directory / "whole", *options)
    expected = records(directory / "whole")
    kills: list[dict[str, Any]] = []
    while len(kills) < num_kills:
        workdir, record = directory / f"run{len(kills)}", directory / "kill.json"
        for _ in range(min(KILLS_A_RUN, num_kills - len(kills))):
            wanted, number = kinds[len(kills) % len(kinds)], numbers[len(kills) % len(numbers)]
            status = train(workdir, *options, "--die", wanted, str(seed + len(kills)), str(record), str(number))
            if status == 0:
                break  # it came to its end first
            assert status == 128 + number, f"exit status {status} after signal {number}"
            kill = json.loads(record.read_text())
            seconds, lost = time.time() - kill["at"], max(kill["steps"] - latest_step(workdir), 0)
            kills.append({**kill, "lost": lost, "seconds": seconds})
            print(f"kill {len(kills)}: {kill['hit']} after {kill['steps']} steps, {seconds:.2f} s", flush=True)
        train(workdir, *options)
        found = records(workdir)
        for name, value in expected.items():
            assert found[name] == value, f"{name} of {workdir} differ from those of a run never killed"
        assert not asked or (workdir / "report/report.html").exists()
    return kills


def table(kills: Sequence[dict[str, Any]]) -> str:
    """Where the kills hit, how many steps each had to be done again, and how soon the run had ended; in Markdown."""
    head = "| hit during | kills | steps done again, median (most) | seconds to its end |\n| --- | --- | --- | --- |"
    lines = [head]
    for kind in (*MOMENTS, START, *STAGES):
        lost, seconds = ([kill[name] for kill in kills if kill["hit"] == kind] for name in ("lost", "seconds"))
        if lost:
            times = f"{statistics.median(seconds):.1f} ({max(seconds):.1f})"
            lines.append(f"| {kind} | {len(lost)} | {statistics.median(lost):.0f} ({max(lost)}) | {times} |")
    return "\n".join([*lines, f"{len(kills)} kills; every run ended with the bits of the run that was never killed"])


def main() -> None:
    """One of the processes to be killed."""
    from mnist_flax import train as command

    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir")
    parser.add_argument("--die", nargs=4)
    parser.add_argument(NO_REPORT, action="store_true")
    options = parser.parse_args()
    if options.die:
        tell_moments()
        wanted, seed, record, number = options.die
        who = (wanted, int(seed), Path(record), int(number))
        threading.Thread(target=die_in, args=who, daemon=True).start()
    sys.argv = ["mnist-flax", *OPTIONS, *([NO_REPORT] if options.no_report else []), "--workdir", options.workdir]
    command.main()  # as a process of its own, which ends whatever it is doing


if __name__ == "__main__":
    main()
