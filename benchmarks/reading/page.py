"""`python -m benchmarks.reading.page`: whether the page that `export --format html` writes answers as Python does.

Node.js runs the page's network on MNIST's test set, and its reader on drawn boards.
"""

import argparse
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
from jaxtyping import UInt8
from PIL import Image

import mnist_flax
from benchmarks.common import parser_of
from benchmarks.reading.synthetic.layouts import curve, drawn, put
from benchmarks.reading.synthetic.strokes import strokes
from mnist_flax import data
from mnist_flax.cli import command, show
from mnist_flax.errors import UserError
from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading import answers, image, proposals
from mnist_flax.reading.reader import Page, read
from mnist_flax.views import page_file

SCRIPT = re.compile(r"<script([^>]*)>(.*?)</script>", re.DOTALL)
SIDE = 140  # of a board, as the page reads it
GROUND = np.array([16, 21, 30])  # its colour
BATCH = 1000  # images that Node.js takes at a time
TIMED = """(() => {
    const start = process.cpuUsage(), found = mnistFlax.predict(pixels);
    return { found, milliseconds: process.cpuUsage(start).user / 1000 };
})()"""
# The answers about boards, with the network's input of every digit.
LOOK = f"""Array.from({{ length: pixels.length / {4 * SIDE**2} }}, (_, i) => {{
    const data = pixels.subarray(i * {4 * SIDE**2}, (i + 1) * {4 * SIDE**2});
    const board = {{ width: {SIDE}, height: {SIDE}, data }};
    const first = answers.look(board, 0);
    const seen = [first, ...first.digits.slice(1).map((_, i) => answers.look(board, i + 1))];
    return {{ ...first, seen: seen.map(({{ pixels }}) => Array.from(pixels ?? [])) }};
}})"""


def evaluate(page: str, expression: str, pixels: bytes = b"") -> Any:
    """The value that Node.js gives a JavaScript expression of `pixels`, with a page's network and reader.

    Raises:
        UserError: there is no Node.js.
    """
    if not shutil.which("node"):
        raise UserError("Node.js is needed: apt-get install nodejs")
    contents = {re.findall('id="(.*?)"', kind)[0]: script for kind, script in SCRIPT.findall(page) if "json" in kind}
    scripts = [script for kind, script in SCRIPT.findall(page) if "module" in kind][:-1]  # the last one draws
    program = f"""
        const contents = {json.dumps(contents)};
        globalThis.document = {{ getElementById: (id) => ({{ textContent: contents[id] }}) }};
        {"".join(f"(() => {{{script}}})();" for script in scripts)}
        const pixels = Uint8Array.from({list(pixels)});
        console.log(JSON.stringify({expression}));"""
    done = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def boards(images: Sequence[UInt8[np.ndarray, "28 28"]], count: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Drawings: of one digit, digits in lines, two that may touch, scribbles; strokes as in `images`, or of one pen."""
    rng = np.random.RandomState(0)
    for number in range(count):
        ink, width = np.zeros((SIDE, SIDE), np.float32), rng.uniform(0.06, 0.2) if number % 3 else None
        order = iter(rng.permutation(len(images)))
        match number % 7:
            case 0 | 1 | 2:
                places = [(rng.uniform(60, 80, 2), rng.uniform(40, 120))]
            case 3 | 4:
                places = [((y, x), rng.uniform(30, 40)) for y in (38, 100) for x in (30, 75, 115)]
            case 5:
                places = [((70, 45), 60), ((70, 45 + rng.uniform(30, 50)), 60)]
            case _:
                places, lines = [], [curve(rng.uniform(10, 130, (6, 2))) for _ in range(2)]
                ink = drawn((SIDE, SIDE), lines, rng.uniform(4, 14))
        for middle, size in places:
            put(ink, strokes(images[next(order)], size, width), middle)
        yield np.rint(GROUND + ink[..., None] * (255 - GROUND)).astype(np.uint8)


def by_python(network: Classifier, board: UInt8[np.ndarray, "h w 3"], *, plain: bool = True) -> Page:
    """What the reader makes of a board; if `plain`, only of what differs from the border, as the page reads it."""
    file = io.BytesIO()
    Image.fromarray(board).save(file, "PNG")
    tones = proposals.all_tones

    def chosen(picture: image.Picture) -> Iterator[Any]:
        return (tone for tone in tones(picture) if not plain or tone.name == "border")

    with mock.patch.object(proposals, "all_tones", chosen):
        return read(network, image.decode(file.getvalue()))


def by_page(page: str, some: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[dict[str, Any]]:
    """What the page makes of boards."""
    opaque = [np.dstack([board, np.full((SIDE, SIDE), 255, np.uint8)]) for board in some]
    return evaluate(page, LOOK, np.stack(opaque).tobytes())


def of_images(page: str, network: Classifier, test: data.Examples) -> dict[str, Any]:
    """How far the page's answers about images are from Python's, and the milliseconds of a processor that one takes."""
    batches = [test.images[i : i + BATCH] for i in range(0, len(test.images), BATCH)]
    results = [evaluate(page, TIMED, batch.tobytes()) for batch in batches]
    found = [answer for result in results for answer in result["found"]]
    labels, probabilities = network.predict(test.images)
    named = np.array([network.class_names.index(answer["digit"]) for answer in found])
    novelty = np.array([answer["novelty"] for answer in found])
    return {
        "images": len(found),
        "accuracy": float((named == test.labels).mean()),
        "named_otherwise": int((named != labels).sum()),
        "probability": float(np.abs([answer["probabilities"] for answer in found] - probabilities).max()),
        "novelty": float(np.abs(novelty - network.novelty(test.images)).max()),
        "milliseconds": sum(result["milliseconds"] for result in results) / len(found),
    }


def of_drawings(page: str, network: Classifier, some: list[UInt8[np.ndarray, "h w 3"]]) -> dict[str, Any]:
    """How far the page's inputs of the network are from Python's, and how many boards the whole reader reads alike."""
    largest, alike = 0, 0
    for board, answer in zip(some, by_page(page, some), strict=True):
        plain = by_python(network, board)
        if plain.best is not None:
            expected = np.stack(answers.inputs(plain)).astype(int)
            largest = max(largest, int(np.abs(np.reshape(answer["seen"], (-1, 28, 28)) - expected).max()))
        whole = answers.describe(network, by_python(network, board, plain=False))
        alike += digits(answer) == digits(whole)
    return {"drawings": len(some), "grey_levels": largest, "read_alike": alike}


def digits(answer: dict[str, Any]) -> tuple[str, list[tuple[str, int]]]:
    """An answer in short."""
    return answer["verdict"], [(digit["digit"], digit["line"]) for digit in answer["digits"]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_data_dir()
    parser.add_argument("--drawings", type=int, default=500, help="how many boards; default: %(default)s")
    parser.add_json()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    network, test = mnist_flax.load(), data.load("mnist", options.data_dir, 0).test
    page = page_file.source(network, "the shipped weights")
    result = {
        **of_images(page, network, test),
        **of_drawings(page, network, list(boards(test.images, options.drawings))),
    }
    text = (
        "{images:,} test images: {accuracy:.2%}, {named_otherwise} named otherwise than by Python; probabilities "
        "differ by at most {probability:.1g}, scores by {novelty:.1g}; {milliseconds:.1f} ms an image\n"
        "{drawings} drawings: what the network sees differs by at most {grey_levels} of 255 grey levels; {read_alike} "
        "are read as by the whole reader"
    )
    show(options, result, text.format(**result))


if __name__ == "__main__":
    main()
