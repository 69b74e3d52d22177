"""`python -m mnist_flax.export`: a trained network as a file for other programs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mnist_flax.cli import ArgumentParser, command, show

FORMATS = ("safetensors", "pytorch", "stablehlo", "onnx")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "export",
        "Write a trained network to a file for other programs, and check it. StableHLO and ONNX take uint8 images "
        "(n, 28, 28) and return logits (n, 10).",
        "runs/mnist_training --format onnx --output mnist.onnx",
    )
    parser.add_checkpoint()
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="--format pytorch: safetensors if the name ends in .safetensors, otherwise a file for torch.load",
    )
    parser.add_json()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    from mnist_flax.inference.classifier import load
    from mnist_flax.inference.formats import export

    difference = export(load(options.checkpoint), options.format, options.output)
    size = options.output.stat().st_size
    show(
        options,
        {"output": str(options.output), "bytes": size, "largest_difference": difference},
        f"{options.output}: {size:,} bytes; on 359 real digits no logit differs by more than {difference:.1g}",
    )


if __name__ == "__main__":
    main()
