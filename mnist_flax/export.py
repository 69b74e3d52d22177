"""`python -m mnist_flax.export`: a trained network as a file for other programs."""

import argparse
from collections.abc import Sequence

from mnist_flax.cli import ArgumentParser, command, show
from mnist_flax.errors import UserError
from mnist_flax.files import local_path

PROGRAMS = ("stablehlo", "onnx")  # the others hold weights
FORMATS = ("safetensors", "pytorch", *PROGRAMS)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "export",
        "Write a trained network to a file for other programs, and check it. StableHLO and ONNX take uint8 images "
        "(n, 28, 28) and return logits (n, 10), or probabilities.",
        "runs/mnist_training --format onnx --output mnist.onnx",
    )
    parser.add_checkpoint()
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument(
        "--output",
        required=True,
        type=local_path,
        metavar="FILE",
        help="--format pytorch: safetensors if the name ends in .safetensors, otherwise a file for torch.load",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="the file returns calibrated probabilities (stablehlo and onnx)"
    )
    parser.add_json()
    options = parser.parse_args(arguments)
    if options.probabilities and options.format not in PROGRAMS:
        raise UserError(f"--probabilities is for {' and '.join(PROGRAMS)}: a {options.format} file holds only weights")
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
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


if __name__ == "__main__":
    main()
