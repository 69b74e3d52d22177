"""`python -m mnist_flax.export`: a trained network as a file for other programs."""

import argparse
from collections.abc import Sequence

from mnist_flax.cli import ArgumentParser, command, show
from mnist_flax.errors import UserError
from mnist_flax.files import local_path

PROGRAMS = ("stablehlo", "onnx")  # that can return probabilities
LARGEST_BATCH = 10_000  # the file is tried with that many images
FORMATS = ("safetensors", "pytorch", *PROGRAMS, "c", "html")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "export",
        "Write a trained network to a file for other programs, and check it. StableHLO and ONNX take uint8 images "
        "(n, 28, 28) and return logits (n, 10), or probabilities. C is for chips without floating point. HTML is a "
        "page to draw on that needs no server. StableHLO can be read for six months: to keep a network, write "
        "safetensors or ONNX.",
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
    onnx = parser.add_argument_group("ONNX only")
    onnx.add_argument(
        "--input",
        choices=("uint8", "float"),
        help="uint8 (n, 28, 28), the default; or float32 (n, 1, 28, 28) in 0..1, which more tools take",
    )
    onnx.add_argument("--batch", type=int, metavar="N", help="images in a batch; default: any number")
    onnx.add_argument("--int8", action="store_true", help="weights and activations in 8 bits, as with --format c")
    parser.add_data_dir("for --format c and --int8 of an imported network, whose scales need training images: ")
    parser.add_json()
    options = parser.parse_args(arguments)
    if options.probabilities and options.format not in PROGRAMS:
        returned = {"c": "returns integers", "html": "always shows them"}.get(options.format, "holds only weights")
        raise UserError(f"--probabilities is for {' and '.join(PROGRAMS)}: a {options.format} file {returned}")
    given = [f"--{name}" for name in ("input", "batch", "int8") if getattr(options, name) not in (None, False)]
    if given and options.format != "onnx":
        raise UserError(f"{given[0]} is for onnx: a {options.format} file has no such choice")
    if options.batch is not None and not 1 <= options.batch <= LARGEST_BATCH:
        raise UserError(f"--batch is {options.batch}; it must be between 1 and {LARGEST_BATCH:,}")
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    {"c": _export_c, "html": _export_html}.get(options.format, _export)(options)


def _export(options: argparse.Namespace) -> None:
    from mnist_flax.inference import integers
    from mnist_flax.inference.classifier import load
    from mnist_flax.inference.formats import LOGITS, PROBABILITIES, export
    from mnist_flax.inference.onnx_files import BYTES, Variant
    from mnist_flax.reading import folder

    kind, network = PROBABILITIES if options.probabilities else LOGITS, load(options.checkpoint)
    in_integers = integers.from_network(network, options.data_dir, folder.load) if options.int8 else None
    variant = Variant(options.input or BYTES, options.batch, in_integers)
    difference = export(network, options.format, options.output, kind, variant)
    returned = kind if options.format in PROGRAMS else None
    value = {"output": str(options.output), "bytes": options.output.stat().st_size, "output_kind": returned}
    text = "{output}: {bytes:,} bytes" + (", returns {output_kind}" if returned else "")
    if in_integers is None:
        value["largest_difference"] = difference
        one = "probability" if options.probabilities else "logit"
        text += f"; on 359 real digits no {one} differs by more than {{largest_difference:.1g}}"
    else:
        value |= integers.named_alike(network, in_integers)
        text += "; of {images} real digits {named_as_in_float32} are named as in float32"
    if options.format == "stablehlo":
        text += "; JAX promises to read it for six months: to keep the network, write safetensors or ONNX too"
    show(options, value, text.format(**value))


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
