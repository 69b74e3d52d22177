"""The C++ kernels as JAX functions with gradients: built by this machine's compiler, called by XLA for its CPU."""

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from mnist_flax.files import cache_directory

SOURCE = Path(__file__).with_name("kernels.cc")
FUNCTIONS = ("forward", "backward")
PREFIX = "mnist_flax_"
COMPILERS = ("c++", "g++", "clang++")
# The library never leaves this machine, so it may use all that its processor has.
OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-Wno-psabi", "-Wno-ignored-attributes")
TIMEOUT = 120  # seconds; compiling takes ten


# The library, or why there is none. XLA's register, in which its functions then are, is one for the process too.
outcome: list[ctypes.CDLL | str] = []


def why_not(keep: bool = True) -> str | None:
    """Load the kernels, compiled now if they were not yet; None if they are ready for use, else why they are not.

    `keep` is whether to use, and leave, a compiled library in the user's cache directory.
    """
    if not outcome:
        outcome.append(_load(keep))
    return outcome[0] if isinstance(outcome[0], str) else None


def num_lanes() -> int:
    """The images in a pack, once the kernels are loaded."""
    [library] = outcome
    assert isinstance(library, ctypes.CDLL), library
    return getattr(library, PREFIX + "lanes")()


def _load(keep: bool) -> ctypes.CDLL | str:
    command = _command()
    if command is None:
        return f"no C++ compiler was found ({', '.join(COMPILERS)})"
    try:
        library = ctypes.CDLL(str(_compiled(command, keep)))
    except subprocess.CalledProcessError as error:
        return f"{command[0]} could not compile them ({_first_error(error.stderr)})"
    except (OSError, subprocess.TimeoutExpired) as error:
        _place(command, keep).unlink(missing_ok=True)  # if it was made, it is no library
        return f"they could not be compiled ({error})"
    for name in FUNCTIONS:
        handler = jax.ffi.pycapsule(getattr(library, PREFIX + name))
        jax.ffi.register_ffi_target(PREFIX + name, handler, platform="cpu")
    return library


def must_compile(keep: bool = True) -> bool:
    """Whether `why_not` would compile them, which takes some seconds."""
    command = _command()
    return not outcome and command is not None and not _place(command, keep).exists()


def compiler() -> list[str] | None:
    """The C++ compiler: $CXX, which may have options, or the first of `COMPILERS` that there is."""
    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    return None if found is None else shlex.split(found)


def _command() -> list[str] | None:
    """What compiles them, without the result's name; None if there is no compiler."""
    chosen = compiler()
    if chosen is None:
        return None
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    return [chosen[0], *OPTIONS, *chosen[1:], native, "-isystem", jax.ffi.include_dir(), str(SOURCE)]


def _place(command: list[str], keep: bool) -> Path:
    """Where the library that a command makes is to be."""
    made_from = (command, SOURCE.read_bytes(), jax.__version__, platform.machine(), _processor())
    name = f"kernels-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]}.so"
    return ((cache_directory() if keep else None) or _own_directory()) / name


@functools.cache
def _own_directory() -> Path:
    """A directory for this process alone."""
    directory = Path(tempfile.mkdtemp(prefix="mnist_flax"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _compiled(command: list[str], keep: bool) -> Path:
    """The library that a command makes: kept from before, or made now.

    Raises:
        subprocess.CalledProcessError: the compiler failed.
    """
    place = _place(command, keep)
    if not place.exists():
        # Several processes may make it at once: each puts a whole file in its place.
        with tempfile.TemporaryDirectory(dir=place.parent) as temporary:
            made = Path(temporary) / place.name
            run = {"capture_output": True, "text": True, "check": True, "timeout": TIMEOUT}
            subprocess.run([*command, "-o", str(made)], stdin=subprocess.DEVNULL, **run)
            made.replace(place)
    return place


def _processor() -> str:
    """What tells processors apart: a home directory may be shared by machines of several kinds."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()


def _first_error(text: str) -> str:
    """Why a compiler failed: the first line of what it printed that says so, not the last, of the program around it."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = (line for line in lines if re.search("error|failed|fatal|cannot|No space left", line, re.IGNORECASE))
    return next(said, lines[-1] if lines else "it said nothing")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packs:
    """A batch of images as the kernels have it: as many images as a vector has lanes are side by side in the last axis.

    Lanes that no image is left for hold numbers without meaning.
    """

    values: Any  # Float[Array, "packs h w c lanes"], in whose place JAX puts other things as it differentiates
    num_images: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, images: "Float[Array, 'n h w c'] | Packs") -> "Packs":
        """Pack images, unless they are packed."""
        if isinstance(images, Packs):
            return images
        (n, *shape), lanes = images.shape, num_lanes()
        packs = -(-n // lanes)
        images = jnp.pad(images, ((0, packs * lanes - n), (0, 0), (0, 0), (0, 0)))
        return cls(jnp.moveaxis(images.reshape(packs, lanes, *shape), 1, -1), n)

    def unpacked(self) -> Float[Array, "n h w c"]:
        """Return the images."""
        images = jnp.moveaxis(self.values, -1, 1)
        return images.reshape(-1, *images.shape[2:])[: self.num_images]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, c)."""
        return (self.num_images, *self.values.shape[1:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def convolve(
    x: Packs,
    scaling: Float[Array, "..."],
    kernel: Float[Array, "side side c_in c_out"],
    padding: int,
    pooled: bool = False,
) -> tuple[Packs, Float[Array, "2 c_out"]]:
    """A convolution (cross-correlation) with stride 1, with what comes before it and what the next one needs; float32.

    Args:
        x: the output of the convolution before.
        scaling: (2, c_in), a factor and an offset for each channel, before a ReLU; (0,) if `x` is taken as it is.
        kernel: as `lax.conv_general_dilated` takes it.
        padding: the zeros on each side, fewer than the kernel's side.
        pooled: whether a 2×2 max-pool follows the ReLU.

    Returns:
        The convolution, and for each channel the sums over batch and space of its values and of their squares.
    """
    packs, *sides, _, lanes = x.values.shape
    length, _, _, c_out = kernel.shape
    sides = [side // (2 if pooled else 1) + 2 * padding - length + 1 for side in sides]
    shapes = [(packs, *sides, c_out, lanes), (2, c_out)]
    y, sums = _call("forward", x.num_images, padding, pooled, shapes, x.values, scaling, kernel)
    return Packs(y, x.num_images), sums


def _convolve_fwd(x: Any, scaling: Any, kernel: Any, padding: int, pooled: bool) -> tuple[Any, Any]:
    # A first layer's input is an image, whose gradient nobody asks for: it need not be computed then.
    wanted = () if x.values.perturbed or scaling.perturbed else None
    x, scaling, kernel = Packs(x.values.value, x.num_images), scaling.value, kernel.value
    results: Any = convolve(x, scaling, kernel, padding, pooled)
    return results, (x, scaling, kernel, results[0], wanted)


def _convolve_bwd(padding: int, pooled: bool, residuals: Any, cotangents: Any) -> tuple[Packs, Array, Array]:
    x, scaling, kernel, y, wanted = residuals
    d_y, d_sums = (
        jnp.zeros(c.shape) if isinstance(c, SymbolicZero) else c for c in (cotangents[0].values, cotangents[1])
    )
    shapes = [(0,) if wanted is None else x.values.shape, (2, x.shape[-1]), kernel.shape]
    arguments = x.values, scaling, kernel, y.values, d_y, d_sums
    d_x, d_scaling, d_kernel = _call("backward", x.num_images, padding, pooled, shapes, *arguments)
    return (
        Packs(jnp.zeros_like(x.values) if wanted is None else d_x, x.num_images),
        d_scaling if scaling.size else jnp.zeros_like(scaling),
        d_kernel,
    )


convolve.defvjp(_convolve_fwd, _convolve_bwd, symbolic_zeros=True)


def _call(function: str, num_images: int, padding: int, pooled: bool, shapes: Any, *arguments: Array) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    # One replica after the other: each already uses all cores.
    call = jax.ffi.ffi_call(PREFIX + function, results, vmap_method="sequential")
    return call(*arguments, images=np.int64(num_images), padding=np.int64(padding), pooled=pooled)
