"""What computes the network's convolutions and BatchNorm: XLA, or on a CPU our own C++ (`kernels.cc`), called by XLA.

The source is compiled on this machine, for this machine, when it is first needed, and kept beside XLA's own compiled
programs. Where there is no compiler, the network runs on XLA's operations.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from mnist_flax.errors import UserError
from mnist_flax.kernels import native

Kernels = Literal["native", "xla", "none"]


class Choice(NamedTuple):
    """The kernels that a program uses, and why these; "" if they are what was asked for."""

    name: Kernels
    why: str = ""


def choose(
    wanted: Literal["auto", "native", "xla"],
    platform: str,
    keep: bool = True,
    say: Callable[[str], None] = lambda sentence: None,
) -> Choice:
    """The kernels for a platform; "auto" takes the native ones if there are any.

    `keep` and `say` are those of `library.load`.

    Raises:
        UserError: "native" is wanted, and there are none.
    """
    if wanted == "xla" or (wanted == "auto" and platform != "cpu"):
        return Choice("xla")
    reason = native.why_not(keep, say) if platform == "cpu" else f"they are for CPUs, and this is a {platform}"
    if reason is None:
        return Choice("native")
    if wanted == "native":
        raise UserError(f"--kernels native: {reason}")
    return Choice("xla", reason)
