"""A network's 34 parameters packed into two arrays, on which an optimizer is a few operations instead of hundreds.

A GPU takes as long for each operation on a small array as on a large one: by its compiler's account a training step
has 130 kernels, and had 326 when the optimizer went from array to array.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from mnist_flax.model import BLOCKS


class Packed(struct.PyTreeNode):
    """Parameters, or their gradients, as two arrays.

    Attributes:
        kernels: the blocks' convolution kernels as matrices, outputs by inputs, filled up with zeros to one size.
        rest: all other parameters, one after the other.
        like: the tree that they were, of shapes.
    """

    kernels: Any
    rest: Any
    like: "Shapes" = struct.field(pytree_node=False)


class Shapes(NamedTuple):
    """A tree of arrays without the arrays."""

    paths: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    structure: Any

    @property
    def are_kernels(self) -> list[bool]:
        """Which parameters are blocks' convolution kernels. Muon's authors advise Adam for the last layer."""
        return [len(s) == 4 and p[0].key in BLOCKS for p, s in zip(self.paths, self.shapes, strict=True)]

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each of those kernels as a matrix."""
        chosen = itertools.compress(self.shapes, self.are_kernels)
        return [(math.prod(shape[:-1]), shape[-1]) for shape in chosen]


@jax.named_scope("packing")
def pack(params: Any) -> Packed:
    """A tree of parameters, or of their gradients, as `Packed`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths, arrays = zip(*leaves, strict=True)
    like = Shapes(paths, tuple(x.shape for x in arrays), structure)
    rows, columns = (max((sides[axis] for sides in like.matrices), default=0) for axis in (1, 0))
    kernels, rest = [], []
    for x, is_kernel in zip(arrays, like.are_kernels, strict=True):
        if is_kernel:
            matrix = x.reshape(-1, x.shape[-1]).T
            kernels.append(jnp.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1]))))
        else:
            rest.append(x.ravel())
    matrices = jnp.stack(kernels) if kernels else jnp.zeros((0, 0, 0))
    return Packed(matrices, jnp.concatenate(rest), like)


@jax.named_scope("packing")
def unpack(packed: Packed) -> Any:
    """Inverse of `pack`."""
    like, start, leaves = packed.like, 0, []
    count, rows, columns = packed.kernels.shape
    # Slices of one matrix: of those of equal shape XLA makes one kernel on a GPU, of slices of a stack it does not.
    kernels, tops = packed.kernels.reshape(count * rows, columns), itertools.count(0, rows)
    for shape, is_kernel in zip(like.shapes, like.are_kernels, strict=True):
        size = math.prod(shape)
        if is_kernel:
            top = next(tops)
            leaves.append(kernels[top : top + shape[-1], : size // shape[-1]].T.reshape(shape))
        else:
            leaves.append(packed.rest[start : start + size].reshape(shape))
            start += size
    return jax.tree.unflatten(like.structure, leaves)


def global_norm(packed: Packed) -> Float[Array, ""]:
    """The Euclidean norm of all parameters together."""
    return jnp.sqrt(jnp.square(jnp.concatenate([x.ravel() for x in jax.tree.leaves(packed)])).sum())
