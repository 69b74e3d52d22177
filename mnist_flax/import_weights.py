"""`python -m mnist_flax.import_weights`: the PyTorch original's weights as a file the other commands take."""

import argparse
import shlex
from collections.abc import Sequence

from mnist_flax.cli import ArgumentParser, command, program_name, show
from mnist_flax.errors import UserError
from mnist_flax.files import local_path

# The original's data set and normalisation.
CARD = {
    "dataset": "mnist",
    "class_names": [str(digit) for digit in range(10)],
    "normalization": {"mean": 0.1307, "std": 0.3081},
    "config": {"val_size": 0},
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "import_weights",
        "Convert the PyTorch original's state dict: alone, or in a checkpoint beside other things, with or without "
        "prefixes, of any precision. Weights only: no code in the file is run.",
        "best_model.pth --output imported.safetensors",
    )
    parser.add_argument(
        "state_dict",
        type=local_path,
        help="a file by torch.save (needs PyTorch) or a safetensors file, whatever its name",
    )
    parser.add_argument("--output", required=True, type=local_path, metavar="FILE")
    parser.add_json()
    options = parser.parse_args(arguments)
    if options.output.suffix != ".safetensors":
        raise UserError(f"--output {options.output} must end in .safetensors")
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    from mnist_flax.files import require_ours
    from mnist_flax.inference import interop, state_dicts, weights

    require_ours(options.output)
    state_dict = state_dicts.read(options.state_dict)
    try:
        variables = interop.from_pytorch(state_dict)
        weights.save(options.output, variables, {**CARD, "source": options.state_dict.name})
    except ValueError as error:
        raise UserError(f"{options.state_dict}: {error}") from error
    except OSError as error:
        raise UserError(f"{options.output} cannot be written ({error.strerror})") from error
    show(
        options,
        {"output": str(options.output)},
        f"{options.output}: try {program_name('evaluate')} {shlex.quote(str(options.output))}",
    )


if __name__ == "__main__":
    main()
