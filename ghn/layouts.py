"""Between the shape of a parameter and the 4-d shape of its node, (out, in, kernel height, kernel width).

Hypernetworks know four axes. Parameters of public networks have any number of them, in other orders: transposed
convolutions, matrices applied from the right, tables of positions, class tokens.

Dimensions: n nodes of a group, O/I out/in channels, Y×X kernel positions, T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ghn.program import Layout, Parameter

Sizes = tuple[int, ...]

Shape = tuple[int, int, int, int]

MOST_HEADS = 32
"""More heads than any attention has, fewer tokens than any image."""


def is_vector(shape: Sizes) -> bool:
    """Whether at most one axis is longer than one."""
    return sum(size > 1 for size in shape) <= 1


def weight_shape(shape: Sizes, is_conv: bool, transposed: bool) -> tuple[Shape, Layout]:
    """The 4-d shape of a weight's node, (out, in, kh, kw), and how the weight is laid out.

    `transposed`: the weight has its inputs first, as transposed convolutions and `x @ W` have.
    """
    if len(shape) < 2:
        return (1, math.prod(shape), 1, 1), "plain"
    if is_conv:
        out, inputs, *kernel = shape
        layout: Layout = "volume" if len(kernel) == 3 else "transposed" if transposed else "plain"
        kernel = [*kernel[-2:], 1, 1][:2]  # a 1-d kernel counts as k×1
        return (inputs, out, *kernel) if layout == "transposed" else (out, inputs, *kernel), layout
    if len(shape) == 2:
        out, inputs = shape[::-1] if transposed else shape
        return (out, inputs, 1, 1), "transposed" if transposed else "plain"
    return (shape[-1], math.prod(shape[:-1]), 1, 1), "matrices"


def encoding_shape(shape: Sizes) -> tuple[Shape, Layout]:
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
    layout: Layout = "tokens"
    if len(shape) == 2 and tokens <= MOST_HEADS < channels and math.isqrt(channels) ** 2 == channels:
        tokens, channels, layout = channels, tokens, "channels_first"
    side = math.isqrt(tokens)
    columns = tokens // side
    return (1, channels, side, columns), layout


def fan_in(parameter: Parameter) -> int:
    """How many inputs one output channel of a weight adds up."""
    if len(parameter.shape) < 2:
        return parameter.size
    if parameter.layout == "matrices":
        return parameter.shape[-2]
    outputs = parameter.shape[1 if parameter.layout == "transposed" else 0]
    return parameter.size // outputs


def arrange(decoded: Tensor, parameter: Parameter) -> Tensor:
    """Weights (n, O, I, Y, X) as tensors (n, *shape) of a parameter's shape, by its layout.

    `plain`: (O, I, Y, X) without the axes of length one that it lacks. `transposed`: (I, O, Y, X), as transposed
    convolutions and `x @ W` have it. `volume`: (O, I, Z, Y, X), the same for each z. `matrices`: (…, I/…, O), a matrix
    for each index of the leading axes. `tokens`: (…, T, C), encodings of C = I channels of a Y×X grid of tokens;
    further tokens (class tokens) come first and take the mean over the grid. `channels_first`: the same as (…, C, T).
    """
    shape = parameter.shape
    if parameter.layout == "transposed":
        decoded = decoded.transpose(1, 2)
    elif parameter.layout == "matrices":
        *leading, inputs, out = shape
        decoded = decoded.reshape(len(decoded), out, math.prod(leading), inputs).permute(0, 2, 3, 1)
    elif parameter.layout in ("tokens", "channels_first"):
        grid = decoded.flatten(3).squeeze(1)  # (n, C, Y·X)
        extra = math.prod(shape) // grid.shape[1] - grid.shape[2]
        if extra > 0:
            grid = torch.cat([grid.mean(2, keepdim=True).expand(-1, -1, extra), grid], 2)
        decoded = grid.transpose(1, 2) if parameter.layout == "tokens" else grid
    elif parameter.layout == "volume":
        decoded = decoded.unsqueeze(3).expand(-1, -1, -1, shape[2], -1, -1)
    return decoded.reshape(-1, *shape)
