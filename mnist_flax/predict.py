"""`python -m mnist_flax.predict`: which digits an image file shows."""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from mnist_flax.cli import ArgumentParser, command, show, use_compilation_cache
from mnist_flax.files import expanded, local_path

COLUMNS = 80  # of a terminal


class Found(NamedTuple):
    """What the arguments name: files, None for standard input, and how much in folders was left out."""

    files: list[Path | None]
    others: int = 0
    folders: int = 0


def find_files(paths: list[str], recursive: bool = False) -> Found:
    """The files that the arguments name: files as they are, and the images in folders, sorted."""
    found = Found([])
    for argument in paths:
        path = Path(argument)
        if argument != "-" and path.is_dir():
            images, others, folders = _images_in(path, recursive)
            images = images or [path]  # `answer` says what is wrong with it
            found = Found(found.files + images, found.others + others, found.folders + folders)
        else:
            found.files.append(None if argument == "-" else path)
    return found


def _images_in(folder: Path, recursive: bool) -> Found:
    """The images in a folder. Hidden files and folders, such as those that macOS adds, are not counted."""
    from mnist_flax.reading.image import SUFFIXES

    images, others = [], 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [Path(parent, name) for name in files if not name.startswith(".")]
        images += [file for file in shown if file.suffix.lower() in SUFFIXES]
        others += sum(file.suffix.lower() not in SUFFIXES for file in shown)
        if not recursive:
            return Found(sorted(images), others, len(folders))
    return Found(sorted(images), others)


def left_out(found: Found) -> str:
    """What in folders was not looked at, in one line; empty if that is nothing."""
    sentences = []
    if found.others:
        sentences.append(f"{found.others} {'file' if found.others == 1 else 'files'} of other types were skipped")
    if found.folders:
        name = "sub-folder was" if found.folders == 1 else "sub-folders were"
        sentences.append(f"{found.folders} {name} not entered (--recursive enters them)")
    return "; ".join(sentences).replace("1 file of other types were", "1 file of another type was")


def describe(result: dict[str, Any], hint: str = "") -> str:
    """The answer as one line of text; `hint` says what would help."""
    name, digits, hint = result["path"], result["digits"], f" ({hint})" if hint else ""
    if len(digits) > 1:
        probabilities = ", ".join(f"{digit['probability']:.1%}" for digit in digits)
        return f"{name}: {in_lines(digits)} ({probabilities})"
    if result["probabilities"] is None:
        return f"{name}: {result['error'] or result['verdict']}{hint}"
    ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
    shown = [f"{name} ({probability:.1%})" for name, probability in ranked[:3]]
    if result["verdict"] == "not like a digit":
        return f"{name}: not like a digit; the nearest is {ranked[0][0]}{hint}"
    first = shown[0] if result["verdict"] == "digit" else f"unclear, perhaps {shown[0]}"
    return f"{name}: {first}, then {', '.join(shown[1:])}{hint}"


def in_lines(digits: list[dict[str, Any]]) -> str:
    """Digits in reading order, "/" between lines."""
    text = digits[0]["digit"]
    for previous, digit in itertools.pairwise(digits):
        text += f"{' /' if digit['line'] != previous['line'] else ''} {digit['digit']}"
    return text


def in_blocks(inputs: Sequence[UInt8[np.ndarray, "28 28"]]) -> str:
    """The network's inputs as text, a line for two rows of pixels, as many side by side as a terminal is wide."""
    shades, gap = " ░▒▓█", "  "
    at_once = (COLUMNS + len(gap)) // (28 + len(gap))
    lines = []
    for start in range(0, len(inputs), at_once):
        row = [pixels.reshape(14, 2, 28).mean(1) for pixels in inputs[start : start + at_once]]
        for values in zip(*row, strict=True):
            lines.append(gap.join("".join(shades[int(v / 256 * len(shades))] for v in line) for line in values))
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "predict",
        "Say which digits an image shows. Any size and colour, dark on light or light on dark, anywhere in the "
        "picture. The exit status is 1 if a file could not be read.",
        "photo.jpg scans/ --show-input",
    )
    parser.add_argument(
        "images",
        nargs="+",
        type=expanded,
        metavar="IMAGE",
        help="image file, folder of image files, or - for standard input",
    )
    parser.add_checkpoint("--checkpoint")
    parser.add_argument("--recursive", action="store_true", help="look into the sub-folders of folders too")
    parser.add_argument("--show-input", action="store_true", help="draw what the network saw of each digit")
    parser.add_argument(
        "--annotate", type=local_path, metavar="DIR", help="write each image with its answers here, as PNG"
    )
    parser.add_json("print a JSON object for each image, one a line")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    found = find_files(options.images, options.recursive)
    from mnist_flax.inference.classifier import load
    from mnist_flax.reading.answers import answer, hint, inputs
    from mnist_flax.views.annotate import Folder, annotated

    folder = Folder(options.annotate, found.files) if options.annotate else None
    use_compilation_cache()
    network, failed = load(options.checkpoint), False
    for path in found.files:
        result, data, picture, page = answer(network, path)
        if page is None or picture is None:
            failed = True
            if options.json:
                show(options, result, "")
            else:
                print(describe(result), file=sys.stderr, flush=True)
            continue
        show(options, result, describe(result, hint(page, picture)))
        if options.show_input and page.best is not None and not options.json:
            print(in_blocks(inputs(page)))
        if folder:
            folder.save(annotated(data, picture, result), path)
    if left_out(found):
        print(left_out(found), file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
