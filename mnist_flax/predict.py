"""`python -m mnist_flax.predict`: which digit an image file shows."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mnist_flax.cli import ArgumentParser, command, show, use_compilation_cache


def find_files(paths: list[str]) -> Iterator[Path | None]:
    """The files that the arguments name: files as they are, the images in folders, None for standard input."""
    for argument in paths:
        path = Path(argument)
        if argument == "-":
            yield None
        elif path.is_dir():
            yield from _images_in(path) or [path]  # `answer` says what is wrong with it
        else:
            yield path


def _images_in(folder: Path) -> list[Path]:
    from mnist_flax.reading.image import SUFFIXES

    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    except OSError:
        return []


def describe(result: dict[str, Any]) -> str:
    """The answer as one line of text."""
    if result["probabilities"] is None:
        return f"{result['path']}: {result['error'] or result['verdict']}"
    ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
    shown = [f"{name} ({probability:.1%})" for name, probability in ranked[:3]]
    if result["verdict"] == "not like a digit":
        return f"{result['path']}: not like a digit; the nearest is {ranked[0][0]}"
    first = shown[0] if result["verdict"] == "digit" else f"unclear, perhaps {shown[0]}"
    return f"{result['path']}: {first}, then {shown[1]}, {shown[2]}"


def in_blocks(pixels: UInt8[np.ndarray, "28 28"]) -> str:
    """The network's input as text, a line for two rows of pixels."""
    shades = " ░▒▓█"
    rows = pixels.reshape(14, 2, 28).mean(1)
    return "\n".join("".join(shades[int(value / 256 * len(shades))] for value in row) for row in rows)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "predict",
        "Say which digit an image shows. Any size and colour, dark on light or light on dark, anywhere in the picture. "
        "The exit status is 1 if a file could not be read.",
        "photo.jpg scans/ --show-input",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, folder of image files, or - for standard input"
    )
    parser.add_checkpoint("--checkpoint")
    parser.add_argument("--show-input", action="store_true", help="draw what the network saw")
    parser.add_json("print a JSON object for each image, one a line")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    from mnist_flax.inference.classifier import load
    from mnist_flax.reading.judge import answer

    use_compilation_cache()
    network, failed = load(options.checkpoint), False
    for path in find_files(options.images):
        result, pixels = answer(network, path)
        unreadable = result["verdict"] == "unreadable"
        failed |= unreadable
        if unreadable and not options.json:
            print(describe(result), file=sys.stderr, flush=True)
            continue
        show(options, result, describe(result))
        if options.show_input and pixels is not None and not options.json:
            print(in_blocks(pixels))
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
