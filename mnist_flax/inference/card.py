"""A network's card: the JSON object that says what it was trained on, how, and how good it is."""

import math
from typing import Any

from mnist_flax.config import validate
from mnist_flax.data import NUM_CLASSES, Normalization
from mnist_flax.errors import UserError
from mnist_flax.model import BLOCKS
from mnist_flax.training.contents import recorded

Card = dict[str, Any]  # as JSON has it

MAXIMA = "activation_maxima"  # the largest output of each block on training images, in the order of `model.BLOCKS`
INT8_ACCURACY = "int8_test_accuracy"  # of the network in integers
# Not all cards have all of them.
_NUMBERS = ("val_accuracy", "val_loss", "temperature", "step", "epoch", "seed", INT8_ACCURACY)


def check(card: object, where: object, *, required: tuple[str, ...] = ()) -> Card:
    """Return `card` if every entry that a command may use is there and of the right kind.

    Raises:
        UserError: it is no card, or one of its values is missing or of the wrong kind.
    """
    try:
        if not isinstance(card, dict):
            raise ValueError("no JSON object")
        names, moments, numbers = card["class_names"], card["normalization"], [*filter(card.__contains__, _NUMBERS)]
        rules = {
            "dataset": isinstance(card["dataset"], str),
            "class_names": isinstance(names, list)
            and 2 <= len(set(names)) == len(names) <= NUM_CLASSES
            and all(isinstance(name, str) for name in names),
            "normalization": isinstance(moments, dict)
            and set(moments) == set(Normalization._fields)
            and all(map(_is_number, moments.values()))
            and moments["std"] > 0,
            "config": isinstance(card["config"], dict),
            **{name: _is_number(card[name]) for name in {*numbers, *required}},
            "temperature": _is_number(card.get("temperature", 1)) and card.get("temperature", 1) > 0,
            MAXIMA: _are_maxima(card.get(MAXIMA, [0.0] * len(BLOCKS))),
        }
        wrong = [name for name, right in rules.items() if not right]
        if wrong:
            raise ValueError(f"its {wrong[0]} cannot be that")
        validate(recorded(card["config"]).config)
    except KeyError as error:
        raise UserError(f"{where} has a card without {error}") from error
    except (ValueError, TypeError, UserError) as error:
        raise UserError(f"{where} has a card that cannot be read ({error})") from error
    return card


def _are_maxima(value: object) -> bool:
    return isinstance(value, list) and len(value) == len(BLOCKS) and all(_is_number(x) and x >= 0 for x in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
