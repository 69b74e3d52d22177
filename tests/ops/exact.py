"""What the C++ kernels compute, in NumPy and float64."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def windows(x, padding, side):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return sliding_window_view(padded, (side, side), axis=(1, 2))  # n h w c side side


def exact_layer(x, scaling, kernel, padding, pooled, d_y, d_sums):
    """The layer, its sums, and their gradients with respect to `x`, `scaling` and `kernel`, in float64."""
    factor, offset = scaling if scaling.size else (1.0, 0.0)
    inside = factor * x + offset
    value = np.maximum(inside, 0) if scaling.size else x
    square = (2, 2) if pooled else (1, 1)
    middle = sliding_window_view(value, square, axis=(1, 2)).max((-2, -1))[:, :: square[0], :: square[1]]
    seen, side = windows(middle, padding, len(kernel)), len(kernel)
    y = np.einsum("nhwcij,ijco->nhwo", seen, kernel)
    d_y = d_y + d_sums[0] + 2 * d_sums[1] * y
    d_middle = np.einsum("nhwoij,ijco->nhwc", windows(d_y, side - 1 - padding, side), kernel[::-1, ::-1])
    spread = lambda a: a.repeat(square[0], 1).repeat(square[1], 2)  # noqa: E731
    d_inside = np.where(value == spread(middle), spread(d_middle), 0)
    if scaling.size:
        d_inside = np.where(inside > 0, d_inside, 0)
    d_scaling = np.stack([(d_inside * x).sum((0, 1, 2)), d_inside.sum((0, 1, 2))])
    d_kernel = np.einsum("nhwcij,nhwo->ijco", seen, d_y)
    return y, np.stack([y.sum((0, 1, 2)), (y * y).sum((0, 1, 2))]), factor * d_inside, d_scaling, d_kernel
