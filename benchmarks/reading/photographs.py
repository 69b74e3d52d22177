"""`python -m benchmarks.reading.photographs`: what is read in the pictures that people bring, in Markdown.

Every picture is drawn here from MNIST's test images and a seed. A kind's pictures depend on its name, the seed,
whether digits must be clear, and nothing else. The reader's weights are fitted to pictures of some kinds, drawn from
other images; the kinds of which they saw none are counted apart (`benchmarks.release.reading_weights`).
"""

import argparse
import itertools
import json
import re
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import markdown, parser_of
from benchmarks.reading.synthetic.kinds import KINDS, ONLY_FITTED, is_fitted
from benchmarks.reading.synthetic.strokes import Digits
from mnist_flax import data
from mnist_flax.cli import command
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier
from mnist_flax.reading import answers

GROUPS = ("one digit", "several digits", "no digit")
OUTCOMES = ("right", "partly", "wrong", "refused", "crashed")


class Picture(NamedTuple):
    """An image file and what it shows."""

    kind: str
    group: str  # of GROUPS
    data: bytes
    suffix: str
    labels: tuple[str, ...]  # in reading order, line by line

    @property
    def name(self) -> str:
        """The kind and the labels, for a file."""
        return f"{re.sub(r'[^a-z0-9]+', '_', self.kind.lower())}_label{'_'.join(self.labels) or 'none'}"


class Answer(NamedTuple):
    """What came of one picture."""

    picture: Picture
    named: tuple[str, ...]
    outcome: str  # of OUTCOMES
    seconds: float


def pictures(kind: str, digits: Digits, seed: int, count: int) -> Iterator[Picture]:
    """The first `count` pictures of a kind."""
    rng = np.random.RandomState(zlib.crc32(f"{seed} {kind}".encode()))
    draw = (KINDS | ONLY_FITTED)[kind]
    digits.shuffle()
    for _ in range(count):
        data, suffix, labels = draw(rng, digits)
        group = GROUPS[2 if not labels else len(labels) > 1]
        yield Picture(kind, group, data, suffix, labels)


def matching(name: str) -> list[str]:
    """The kind of this name, or else those whose names contain it.

    Raises:
        UserError: there is none.
    """
    found = [name] if name in KINDS else [kind for kind in KINDS if name in kind]
    if not found:
        raise UserError(f"there is no kind {name!r}; without --kinds the table shows all")
    return found


def named(result: dict[str, Any]) -> tuple[str, ...]:
    """The digits that an answer names, in reading order."""
    return tuple(str(found["digit"]) for found in result["digits"])


def outcome(labels: tuple[str, ...], found: tuple[str, ...]) -> str:
    """Which of OUTCOMES an answer is; of several digits, some may be right."""
    if labels == found:
        return "right"
    if not found:
        return "refused"
    return "partly" if len(labels) > 1 else "wrong"


def ask(network: classifier.Classifier, picture: Picture, folder: Path) -> Answer:
    """Let the reader answer about a picture's file."""
    path = folder / f"picture{picture.suffix}"
    path.write_bytes(picture.data)
    start = time.perf_counter()
    answer = answers.answer(network, path).result
    found = named(answer)
    result = "crashed" if answers.is_unforeseen(answer) else outcome(picture.labels, found)
    return Answer(picture, found, result, time.perf_counter() - start)


def table(answers: Sequence[Answer]) -> str:
    """A row for each kind and each group, in Markdown; kinds that the weights were fitted with come first."""
    outcomes = ("right", "partly right", "named wrongly", "refused", "crashed")
    head = ("kind", "weights fitted with it", "pictures", *outcomes, "ms an image")
    rows = []
    for group, fitted in itertools.product(GROUPS, (True, False)):
        members = [a for a in answers if a.picture.group == group and is_fitted(a.picture.kind) == fitted]
        for kind in dict.fromkeys(answer.picture.kind for answer in members):
            rows.append(_row(kind, fitted, [answer for answer in members if answer.picture.kind == kind], "{}"))
        if members:
            rows.append(_row(f"**{group}**", fitted, members, "{} ({:.1%})"))
    return markdown(head, rows)


def _row(name: str, fitted: bool, answers: Sequence[Answer], form: str) -> tuple[str, ...]:
    counts = Counter(answer.outcome for answer in answers)
    figures = [form.format(counts[each], counts[each] / len(answers)) if counts[each] else "" for each in OUTCOMES]
    milliseconds = 1000 * sum(answer.seconds for answer in answers) / len(answers)
    return name, "yes" if fitted else "no", str(len(answers)), *figures, f"{milliseconds:.0f}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_checkpoint("--checkpoint")
    parser.add_data_dir()
    parser.add_argument("--kinds", nargs="+", metavar="NAME", help="names, or parts of names; default: all")
    parser.add_argument("--per-kind", type=int, default=10, metavar="N", help="pictures of each kind (10)")
    parser.add_argument("--clear", action="store_true", help="draw only digits that are clearly of their class")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pictures (0)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the pictures, to look at")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each picture's answer")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    if options.per_kind < 1:
        raise UserError(f"--per-kind is {options.per_kind}; it must be at least 1")
    kinds = [kind for name in options.kinds or [""] for kind in matching(name)]
    network, dataset = classifier.load(options.checkpoint), data.load("auto", options.data_dir, None)
    if dataset.note:
        print(f"not MNIST but {dataset.name}: {dataset.note}\n")
    digits = Digits(dataset, clear=options.clear)
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            for i, picture in enumerate(pictures(kind, digits, options.seed, options.per_kind)):
                if options.save:
                    options.save.mkdir(parents=True, exist_ok=True)
                    (options.save / f"{picture.name}_{i}{picture.suffix}").write_bytes(picture.data)
                if not answers:
                    ask(network, picture, Path(folder))  # compiles
                answers.append(ask(network, picture, Path(folder)))
    print(table(answers))
    if options.json:
        options.json.write_text(json.dumps([_record(answer) for answer in answers], indent=1))


def _record(answer: Answer) -> dict[str, Any]:
    kind, group, _, _, labels = answer.picture
    return {"kind": kind, "group": group, "labels": labels} | answer._asdict() | {"picture": answer.picture.name}


if __name__ == "__main__":
    main()
