"""`python -m mnist_flax.predict`: which digit an image file shows."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mnist_flax.errors import ArgumentParser, UserError, command

# Below this probability the network is guessing.
CLEAR = 0.6
MAX_BYTES = 100_000_000


def find_files(paths: list[str]) -> Iterator[Path | None]:
    """The files that the arguments name: themselves, images in folders, None for standard input."""
    from mnist_flax.image import SUFFIXES

    for argument in paths:
        path = Path(argument)
        if argument == "-":
            yield None
        elif path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not found:
                print(f"error: {path} holds no images ({', '.join(sorted(SUFFIXES))})", file=sys.stderr)
            yield from found
        else:
            yield path


def _read(path: Path | None) -> bytes:
    try:
        with sys.stdin.buffer if path is None else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"it is larger than {MAX_BYTES // 10**6} MB")
    return data


def answer(network: Any, path: Path | None) -> tuple[dict[str, Any], UInt8[np.ndarray, "28 28"] | None]:
    """What is to be said about one file, and the network's input.

    Keys: `path`; those of `judge`, the verdict "unreadable" among them; then `error` says why, otherwise it is None.
    """
    from mnist_flax import image

    result: dict[str, Any] = {"path": "-" if path is None else str(path), "digit": None, "probability": None}
    result |= {"probabilities": None, "verdict": "unreadable", "error": None}
    try:
        drawing = image.draw(image.decode(_read(path)))
    except UserError as error:
        return {**result, "error": str(error)}, None
    return result | judge(network, drawing), drawing.pixels


def judge(network: Any, drawing: Any) -> dict[str, Any]:
    """What is to be said about an image in which `image.draw` found `drawing`.

    Keys: `digit`, a class name or None; its `probability`; `probabilities` by class; `verdict`: "digit", "unclear" (no
    class has a probability of `CLEAR`), "no ink" or "several digits".
    """
    result: dict[str, Any] = {"digit": None, "probability": None, "probabilities": None}
    if drawing.pixels is None:
        return {**result, "verdict": drawing.verdict}
    # Averaged over small shifts: on what is no digit at all they disagree.
    labels, probabilities = network.predict(drawing.pixels[None], shifts=1)
    probability = float(probabilities[0, labels[0]])
    clear = probability >= CLEAR
    result |= {
        "digit": network.class_names[labels[0]] if clear else None,
        "probability": probability,
        "probabilities": dict(zip(network.class_names, map(float, probabilities[0]), strict=True)),
        "verdict": "digit" if clear else "unclear",
    }
    return result


def describe(result: dict[str, Any]) -> str:
    """The answer for people, on one line."""
    if result["probabilities"] is None:
        return f"{result['path']}: {result['error'] or result['verdict']}"
    ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
    shown = [f"{name} ({probability:.1%})" for name, probability in ranked[:3]]
    first = shown[0] if result["digit"] is not None else f"unclear, perhaps {shown[0]}"
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
