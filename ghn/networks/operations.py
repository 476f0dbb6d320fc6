"""The operations that a network is made of, and the parameters that they use.

Shapes are those of one image: `(C, S, S)` for feature maps, `(T, C)` for tokens, `(C,)` for vectors.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Role = Literal["weight", "scale", "bias", "encoding"]
"""What a parameter does to the images' features: multiply them as a matrix or a kernel, scale each channel, be added
to each channel (a bias), or be a value of its own that joins them (a position encoding, a class token)."""

AxisOrder = Literal["plain", "transposed", "volume", "matrices", "tokens", "channels_first"]
"""How the axes of a parameter come from those of its node's shape: see `ghn.networks.parameter_axes.arrange`."""


class Parameter(NamedTuple):
    """One tensor of a target network: its name in `named_parameters()`, its shape and what it is for."""

    name: str
    shape: tuple[int, ...]
    role: Role = "weight"
    axis_order: AxisOrder = "plain"

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Operation(NamedTuple):
    """One step of a program.

    `inputs` are positions in `Program.operations`; `settings` are the integers that the kind needs
    (`conv`: strides, paddings (height, width each), dilation, groups; pools: kernel, stride, padding;
    `subsample`: stride; `attention`: heads).
    """

    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    parameters: tuple[Parameter, ...] = ()
    settings: tuple[int, ...] = ()


def flops_of(operation: Operation) -> int:
    """Floating-point operations of one operation, for one image: see `Program.flops`."""
    if operation.kind == "conv":
        return 2 * operation.parameters[0].size * math.prod(operation.shape[1:])
    if operation.kind == "linear":
        return 2 * operation.parameters[0].size * math.prod(operation.shape[:-1])
    if operation.kind == "attention":
        tokens, channels = operation.shape
        return 4 * tokens * tokens * channels
    return 0
