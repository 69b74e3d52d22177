"""`python -m mnist_flax.predict`: which digit an image file shows."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax.errors import ArgumentParser, UserError, command

if TYPE_CHECKING:
    from mnist_flax.classifier import Classifier
    from mnist_flax.image import Drawing

# Below this probability the network is guessing.
CLEAR = 0.6
MAX_BYTES = 100_000_000


def find_files(paths: list[str]) -> Iterator[Path | None]:
    """The files that the arguments name: themselves, images in folders, None for standard input."""
    for argument in paths:
        path = Path(argument)
        if argument == "-":
            yield None
        elif path.is_dir():
            yield from _images_in(path) or [path]  # for `answer` to say what is wrong with it
        else:
            yield path


def _images_in(folder: Path) -> list[Path]:
    from mnist_flax.image import SUFFIXES

    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError:
        return []


def _read(path: Path | None) -> bytes:
    from mnist_flax.image import SUFFIXES

    if path is not None and path.is_dir():
        raise UserError(f"no images are to be found in this folder ({', '.join(sorted(SUFFIXES))})")
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path is None else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"it is larger than {MAX_BYTES // 10**6} MB")
    return data


def answer(network: "Classifier", path: Path | None) -> tuple[dict[str, Any], UInt8[np.ndarray, "28 28"] | None]:
    """What is to be said about one file, and the network's input.

    Keys: `path`; those of `judge_drawing`, the verdict "unreadable" among them; then `error` says why, otherwise it is
    None.
    """
    from mnist_flax import image

    result: dict[str, Any] = {"path": "-" if path is None else str(path), "digit": None, "probability": None}
    result |= {"probabilities": None, "verdict": "unreadable", "error": None}
    try:
        drawing = image.draw(image.decode(_read(path)))
    except UserError as error:
        return {**result, "error": str(error)}, None
    return result | judge_drawing(network, drawing), drawing.pixels


def judge_drawing(network: "Classifier", drawing: "Drawing") -> dict[str, Any]:
    """What is to be said about an image in which `image.draw` found `drawing`.

    Keys: `digit`, a class name or None; its `probability`; `probabilities` by class; `verdict`: "digit", or what
    `judge` or `image.draw` say otherwise.
    """
    if drawing.pixels is None:
        return {"digit": None, "probability": None, "probabilities": None, "verdict": drawing.verdict}
    [probabilities], [verdict] = judge(network, drawing.pixels[None])
    best = int(probabilities.argmax())
    return {
        "digit": network.class_names[best] if verdict == "digit" else None,
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(network.class_names, map(float, probabilities), strict=True)),
        "verdict": verdict,
    }


def judge(
    network: "Classifier", images: UInt8[np.ndarray, "n 28 28"]
) -> tuple[Float[np.ndarray, "n classes"], list[str]]:
    """Probabilities of images, and of each whether it is a "digit", "unclear" or "not like a digit".

    It is not like a digit if its novelty is above 1 (of a network without a reference nothing is), and unclear if no
    class has a probability of `CLEAR`.
    """
    # Averaged over small shifts: on what is no digit at all they disagree.
    probabilities, novelty = network.predict(images, shifts=1)[1], network.novelty(images)
    verdicts = np.where(probabilities.max(-1) < CLEAR, "unclear", "digit")
    if novelty is not None:
        verdicts = np.where(novelty > 1, "not like a digit", verdicts)
    return probabilities, verdicts.tolist()


def describe(result: dict[str, Any]) -> str:
    """The answer for people, on one line."""
    if result["probabilities"] is None:
        return f"{result['path']}: {result['error'] or result['verdict']}"
    ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
    shown = [f"{name} ({probability:.1%})" for name, probability in ranked[:3]]
    if result["verdict"] == "not like a digit":
        return f"{result['path']}: not like a digit; the nearest is {ranked[0][0]}"
    first = shown[0] if result["verdict"] == "digit" else f"unclear, perhaps {shown[0]}"
    return f"{result['path']}: {first}, then {shown[1]}, {shown[2]}"


def in_blocks(pixels: UInt8[np.ndarray, "28 28"]) -> str:
    """The network's input for a terminal, two rows of pixels to a line."""
    shades = " ░▒▓█"
    rows = pixels.reshape(14, 2, 28).mean(1)
    return "\n".join("".join(shades[int(value / 256 * len(shades))] for value in row) for row in rows)


@command
def main() -> None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m mnist_flax.predict",
        description="Say which digit an image shows. Any size and colour, dark on light or light on dark, anywhere in "
        "the picture. Exits with status 1 if a file could not be read.",
        epilog="example: python -m mnist_flax.predict photo.jpg scans/ --show-input",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, folder of them, or - for standard input"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="run directory or safetensors file; default: the shipped weights"
    )
    parser.add_argument("--show-input", action="store_true", help="draw what the network saw")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line for each image")
    options = parser.parse_args()

    from mnist_flax.classifier import load
    from mnist_flax.mesh import use_compilation_cache

    use_compilation_cache()
    network, failed = load(options.checkpoint), 0
    for path in find_files(options.images):
        result, pixels = answer(network, path)
        unreadable = result["verdict"] == "unreadable"
        failed += unreadable
        if options.json:
            print(json.dumps(result), flush=True)
            continue
        print(describe(result), file=sys.stderr if unreadable else sys.stdout, flush=True)
        if options.show_input and pixels is not None:
            print(in_blocks(pixels))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
