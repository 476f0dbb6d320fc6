"""The axes of a parameter and the four axes of its node: out channels, in channels, kernel height, kernel width.

Hypernetworks predict four axes. Parameters of public networks have any number of axes, in other orders: transposed
convolutions, matrices that are multiplied from the right, tables of positions, class tokens.

Dimensions: M nodes of a group, O/I out/in channels, Y×X kernel positions, Z a third kernel axis, G groups, T tokens,
C channels of an encoding.
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
"""The most heads that an attention has. Images have more tokens."""


def is_vector(shape: Sizes) -> bool:
    """Return whether at most one axis is longer than one."""
    return sum(size > 1 for size in shape) <= 1


def kernel_shape(shape: Sizes, transposed: bool = False, groups: int = 1) -> tuple[Shape, AxisOrder]:
    """Return the shape of a convolution's node, (out, in, height, width), and the axis order of its weight.

    Args:
        shape: (out, in per group, kernel), or (in, out per group, kernel) of a transposed convolution; the kernel has
            any number of axes. A kernel of one axis counts as 1×k. Of three axes, the first repeats the others.
        groups: of a transposed convolution.
    """
    if len(shape) < 2:
        return (1, math.prod(shape), 1, 1), "plain"
    out, inputs, *kernel = shape
    height, width = [1, 1, *kernel][-2:]
    if transposed:
        return (inputs * groups, out // groups, height, width), "transposed"
    return (out, inputs, height, width), "volume" if len(shape) == 5 else "plain"


def matrix_shape(shape: Sizes, summed: int | None, inputs_first: bool) -> tuple[Shape, AxisOrder]:
    """Return the shape of a matrix's node, (out, in, 1, 1), and the axis order of the matrix.

    Args:
        shape: of the matrix, with any number of axes for the inputs and for the outputs.
        summed: the number of inputs, over which the product sums; None if it is not known.
        inputs_first: whether the inputs come first, in case the lengths of the axes fit both orders.
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


def stack_shape(shape: Sizes, inputs_first: bool) -> tuple[Shape, AxisOrder]:
    """Return the shape of the node of a stack of matrices, (…, in, out) or (…, out, in), and its axis order."""
    *leading, rows, columns = shape
    if inputs_first:
        return (columns, math.prod(leading) * rows, 1, 1), "matrices"
    return (math.prod(leading) * rows, columns, 1, 1), "plain"


def encoding_shape(shape: Sizes) -> tuple[Shape, AxisOrder]:
    """Return the shape of an encoding's node, (1, C, Y, X), and the axis order of the encoding.

    Tokens lie on a square grid, or on one with one more column. Tokens beyond the grid (class tokens) come first. A
    matrix is (T, C), unless it looks like the positions of each head: few rows, and columns that fill a square.
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
        *leading, height, width = sizes
        return (1, math.prod(leading), height, width), "plain"
    tokens, channels = sizes
    axis_order: AxisOrder = "tokens"
    if len(shape) == 2 and tokens <= MOST_HEADS < channels and math.isqrt(channels) ** 2 == channels:
        tokens, channels, axis_order = channels, tokens, "channels_first"
    side = math.isqrt(tokens)
    columns = tokens // side
    return (1, channels, side, columns), axis_order


def positions_shape(shape: Sizes) -> Shape:
    """Return the node's shape of a table (T, C) of positions in a text: a grid of T cells or more, read by rows."""
    tokens, channels = shape
    side = math.isqrt(tokens)
    return 1, channels, side, -(-tokens // side)


def fan_in(parameter: Parameter, shape: Shape) -> int:
    """Return how many inputs one output channel of a weight adds up; `shape` is that of its node."""
    return parameter.shape[-2] if parameter.axis_order == "matrices" else parameter.size // shape[0]


def arrange(decoded_MOIYX: Tensor, parameter: Parameter) -> Tensor:
    """Return decoded weights (M, O, I, Y, X) as tensors (M, *shape) of a parameter's shape.

    The parameter's axis order is one of these:
    - `plain`: (O, I, Y, X), perhaps without axes of length one.
    - `transposed`: (I, O, Y, X), or that for each group, as in transposed convolutions and in `x @ W`.
    - `volume`: (O, I, Z, Y, X), the same for each z.
    - `matrices`: (…, I/…, O), a matrix for each index of the leading axes.
    - `tokens`: (…, T, C), encodings of C = I channels on a Y×X grid of tokens. Further tokens (class tokens) come first
      and are the mean over the grid; cells beyond the tokens are left out.
    - `channels_first`: (…, C, T), otherwise as `tokens`.
    """
    shape, axis_order = parameter.shape, parameter.axis_order
    if axis_order == "transposed":
        arranged = _transposed(decoded_MOIYX, parameter)
    elif axis_order == "matrices":
        *leading, inputs, out = shape
        arranged = decoded_MOIYX.reshape(-1, out, math.prod(leading), inputs).permute(0, 2, 3, 1)
    elif axis_order in ("tokens", "channels_first"):
        tokens_MCT = decoded_MOIYX.flatten(3).squeeze(1)
        extra = math.prod(shape) // tokens_MCT.shape[1] - tokens_MCT.shape[2]
        if extra > 0:
            tokens_MCT = _with_means(tokens_MCT, extra)
        tokens_MCT = tokens_MCT[..., : tokens_MCT.shape[2] + min(extra, 0)]  # a grid may have more cells than tokens
        arranged = tokens_MCT.transpose(1, 2) if axis_order == "tokens" else tokens_MCT
    elif axis_order == "volume":
        arranged = decoded_MOIYX.unsqueeze(3).expand(-1, -1, -1, shape[2], -1, -1)
    else:
        arranged = decoded_MOIYX
    return arranged.reshape(-1, *shape)


def _transposed(decoded_MOIYX: Tensor, parameter: Parameter) -> Tensor:
    """Return decoded weights as (M, G, I, O, Y, X), or as (M, G, I, O, Z, Y, X) for a kernel of three axes."""
    shape = parameter.shape
    groups = max(shape[0] // decoded_MOIYX.shape[2], 1)
    M, out, inputs, height, width = decoded_MOIYX.shape
    arranged_MGIOYX = decoded_MOIYX.view(M, groups, out // groups, inputs, height, width).transpose(2, 3)
    if len(shape) == 5 and arranged_MGIOYX.numel() < M * parameter.size:  # a kernel of three axes
        return arranged_MGIOYX.unsqueeze(4).expand(-1, -1, -1, -1, shape[2], -1, -1)
    return arranged_MGIOYX


def _with_means(tokens_MCT: Tensor, count: int) -> Tensor:
    """Return tokens (M, C, T) with `count` tokens in front, each of them the mean over the others."""
    import torch  # here because `ghn.networks.graph` imports this module and does without PyTorch

    return torch.cat([tokens_MCT.mean(2, keepdim=True).expand(-1, -1, count), tokens_MCT], 2)
