"""Between the shape of a parameter and the 4-d shape of its node, (out, in, kernel height, kernel width).

Hypernetworks know four axes. Parameters of public networks have any number of them, in other orders: transposed
convolutions, matrices applied from the right, tables of positions, class tokens.

Dimensions: n nodes of a group, O/I out/in channels, Y×X kernel positions, T tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ghn.networks.operations import AxisOrder, Parameter

if TYPE_CHECKING:
    from torch import Tensor

Sizes = tuple[int, ...]
"""The lengths of a parameter's axes."""

Shape = tuple[int, int, int, int]
"""Out channels, in channels, kernel height, kernel width."""

MOST_HEADS = 32
"""More heads than any attention has, fewer tokens than any image."""


def is_vector(shape: Sizes) -> bool:
    """Whether at most one axis is longer than one."""
    return sum(size > 1 for size in shape) <= 1


def kernel_shape(shape: Sizes, transposed: bool = False, groups: int = 1) -> tuple[Shape, AxisOrder]:
    """The 4-d shape of a convolution's node, (out, in, kh, kw), and how its weight is laid out.

    Args:
        shape: (out, in a group, kernel), or (in, out a group, kernel) of a transposed convolution; the kernel has any
            number of axes. One axis counts as 1×k; of three the first repeats the others.
    """
    if len(shape) < 2:
        return (1, math.prod(shape), 1, 1), "plain"
    out, inputs, *kernel = shape
    kernel = [1, 1, *kernel][-2:]
    if transposed:
        return (inputs * groups, out // groups, *kernel), "transposed"
    return (out, inputs, *kernel), "volume" if len(shape) == 5 else "plain"


def matrix_shape(shape: Sizes, summed: int | None, inputs_first: bool) -> tuple[Shape, AxisOrder]:
    """The 4-d shape of a matrix's node, (out, in, 1, 1), and how the matrix is laid out.

    Args:
        summed: the length of the axis that the product sums over, which tells inputs from outputs; the parameter may
            have several axes for either.
        inputs_first: whether the inputs come first, where the lengths do not print_above_bar.
    """
    size = math.prod(shape)
    if len(shape) < 2:
        return (1, size, 1, 1), "plain"
    if len(shape) == 2 and summed not in shape:
        summed = shape[0] if inputs_first else shape[1]
    cuts = range(1, len(shape))
    lengths = {
        "transposed": [math.prod(shape[:cut]) for cut in cuts],  # of the inputs
        "plain": [math.prod(shape[cut:]) for cut in cuts],
    }
    for axis_order in ("transposed", "plain") if inputs_first else ("plain", "transposed"):
        if summed in lengths[axis_order]:
            return (size // summed, summed, 1, 1), axis_order
    return (shape[-1], size // shape[-1], 1, 1), "matrices"


def encoding_shape(shape: Sizes) -> tuple[Shape, AxisOrder]:
    """The 4-d shape of an encoding's node, (1, C, Y, X), and how the encoding is laid out.

    Tokens lie on a square grid, or one with a column more; those that it has no place for (class tokens) come first.
    A matrix is (T, C), unless it looks like positions of each head: few rows, and columns that fill a square.
    """
    if is_vector(shape):
        return (1, math.prod(shape), 1, 1), "plain"
    if len(shape) == 4 and shape[0] == 1:
        _, first, second, third = shape
        if first == second != third:
            return (1, third, first, second), "tokens"
        return (1, first, second, third), "plain"
    sizes = [size for size in shape if size > 1]
    if len(sizes) > 2:
        return (1, math.prod(sizes[:-2]), *sizes[-2:]), "plain"
    tokens, channels = sizes
    axis_order: AxisOrder = "tokens"
    if len(shape) == 2 and tokens <= MOST_HEADS < channels and math.isqrt(channels) ** 2 == channels:
        tokens, channels, axis_order = channels, tokens, "channels_first"
    side = math.isqrt(tokens)
    columns = tokens // side
    return (1, channels, side, columns), axis_order


def fan_in(parameter: Parameter, shape: Shape) -> int:
    """How many inputs one output channel of a weight adds up; `shape` is its node's."""
    return parameter.shape[-2] if parameter.axis_order == "matrices" else parameter.size // shape[0]


def arrange(decoded: Tensor, parameter: Parameter) -> Tensor:
    """Weights (n, O, I, Y, X) as tensors (n, *shape) of a parameter's shape, by its axis_order.

    `plain`: (O, I, Y, X) without the axes of length one that it lacks. `transposed`: (I, O, Y, X), or that for each
    group, as transposed convolutions and `x @ W` have it. `volume`: (O, I, Z, Y, X), the same for each z. `matrices`:
    (…, I/…, O), a matrix for each index of the leading axes. `tokens`: (…, T, C), encodings of C = I channels of a Y×X
    grid of tokens; further tokens (class tokens) come first and take the mean over the grid. `channels_first`: the
    same as (…, C, T).
    """
    shape = parameter.shape
    if parameter.axis_order == "transposed":
        groups = max(shape[0] // decoded.shape[2], 1)
        decoded = decoded.unflatten(1, (groups, -1)).transpose(2, 3)
        if len(shape) == 5 and decoded.numel() < len(decoded) * parameter.size:  # a kernel of three axes
            decoded = decoded.unsqueeze(4).expand(-1, -1, -1, -1, shape[2], -1, -1)
    elif parameter.axis_order == "matrices":
        *leading, inputs, out = shape
        decoded = decoded.reshape(len(decoded), out, math.prod(leading), inputs).permute(0, 2, 3, 1)
    elif parameter.axis_order in ("tokens", "channels_first"):
        grid = decoded.flatten(3).squeeze(1)  # (n, C, Y·X)
        extra = math.prod(shape) // grid.shape[1] - grid.shape[2]
        if extra > 0:
            grid = _with_means(grid, extra)
        decoded = grid.transpose(1, 2) if parameter.axis_order == "tokens" else grid
    elif parameter.axis_order == "volume":
        decoded = decoded.unsqueeze(3).expand(-1, -1, -1, shape[2], -1, -1)
    return decoded.reshape(-1, *shape)


def _with_means(grid: Tensor, count: int) -> Tensor:
    """(n, C, T) with `count` tokens in front, each of them the mean over the others."""
    import torch

    return torch.cat([grid.mean(2, keepdim=True).expand(-1, -1, count), grid], 2)
