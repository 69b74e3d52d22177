"""`python -m mnist_flax.import_weights`: the PyTorch original's weights as a file the other commands take."""

import json
from pathlib import Path

from mnist_flax.errors import ArgumentParser, UserError, command

# What the original normalises with.
CARD = {
    "dataset": "mnist",
    "class_names": [str(digit) for digit in range(10)],
    "normalization": {"mean": 0.1307, "std": 0.3081},
    "config": {"val_size": 0},
}


@command
def main() -> None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m mnist_flax.import_weights",
        description="Convert the PyTorch original's state dict. Weights only: no code in the file is run.",
        epilog="example: python -m mnist_flax.import_weights best_model.pth --output imported.safetensors",
    )
    parser.add_argument("state_dict", type=Path, help=".pth or .pt (needs PyTorch) or .safetensors")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.output.suffix != ".safetensors":
        raise UserError(f"--output {options.output} must end in .safetensors")

    from mnist_flax import interop, weights
    from mnist_flax.export import read_state_dict

    try:
        variables = interop.from_pytorch(read_state_dict(options.state_dict))
        weights.save(options.output, variables, {**CARD, "source": options.state_dict.name})
    except ValueError as error:
        raise UserError(f"{options.state_dict}: {error}") from error
    except OSError as error:
        raise UserError(f"{options.output} cannot be written ({error.strerror})") from error
    if options.json:
        print(json.dumps({"output": str(options.output)}))
    else:
        print(f"{options.output}: try python -m mnist_flax.evaluate {options.output}")


if __name__ == "__main__":
    main()
