"""`python -m mnist_flax.export`: a trained network as a file for other programs."""

import argparse
from collections.abc import Sequence

from mnist_flax.cli import ArgumentParser, command, show
from mnist_flax.errors import UserError
from mnist_flax.files import local_path

PROGRAMS = ("stablehlo", "onnx")  # that can return probabilities
FORMATS = ("safetensors", "pytorch", *PROGRAMS, "c", "html")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "export",
        "Write a trained network to a file for other programs, and check it. StableHLO and ONNX take uint8 images "
        "(n, 28, 28) and return logits (n, 10), or probabilities. C is for chips without floating point. HTML is a "
        "page to draw on that needs no server.",
        "runs/mnist_training --format onnx --output mnist.onnx",
    )
    parser.add_checkpoint()
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument(
        "--output",
        required=True,
        type=local_path,
        metavar="FILE",
        help="--format pytorch: safetensors if the name ends in .safetensors, otherwise a file for torch.load; "
        "--format c: its header is written beside it",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="the file returns calibrated probabilities (stablehlo and onnx)"
    )
    parser.add_data_dir("for --format c, if the network was imported: it is scaled by training images. ")
    parser.add_json()
    options = parser.parse_args(arguments)
    if options.probabilities and options.format not in PROGRAMS:
        returned = {"c": "returns integers", "html": "always shows them"}.get(options.format, "holds only weights")
        raise UserError(f"--probabilities is for {' and '.join(PROGRAMS)}: a {options.format} file {returned}")
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    {"c": _export_c, "html": _export_html}.get(options.format, _export)(options)


def _export(options: argparse.Namespace) -> None:
    from mnist_flax.inference.classifier import load
    from mnist_flax.inference.formats import LOGITS, PROBABILITIES, export

    kind = PROBABILITIES if options.probabilities else LOGITS
    difference = export(load(options.checkpoint), options.format, options.output, kind)
    size = options.output.stat().st_size
    returned = kind if options.format in PROGRAMS else None
    one = "probability" if options.probabilities else "logit"
    show(
        options,
        {"output": str(options.output), "bytes": size, "output_kind": returned, "largest_difference": difference},
        f"{options.output}: {size:,} bytes{f', returns {returned}' if returned else ''}; on 359 real digits no {one} "
        f"differs by more than {difference:.1g}",
    )


def _export_c(options: argparse.Namespace) -> None:
    from mnist_flax.inference.c_source import export
    from mnist_flax.inference.classifier import load
    from mnist_flax.reading import folder

    written = export(load(options.checkpoint), options.output, options.data_dir, folder.load)
    text = (
        "{output} and {header}: {weight_bytes:,} bytes of weights, {other_constant_bytes:,} of other constants, "
        "{ram_bytes:,} of RAM; of {images} real digits {named_as_in_float32} are named as in float32"
    )
    show(options, written, text.format(**written))


def _export_html(options: argparse.Namespace) -> None:
    from mnist_flax.inference.classifier import load
    from mnist_flax.views.page_file import export

    written = export(load(options.checkpoint), options.output, str(options.checkpoint or "the shipped weights"))
    show(
        options,
        written,
        "{output}: {bytes:,} bytes, a page that needs no server: open it in a browser".format(**written),
    )


if __name__ == "__main__":
    main()
