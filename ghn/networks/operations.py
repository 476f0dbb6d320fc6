"""The operations that a network consists of, and the parameters that they use.

Shapes are those of one image or text: `(C, S, S)` for feature maps, `(T, C)` for tokens, `(C,)` for vectors; `(T,)` for
a text itself.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Role = Literal["weight", "scale", "bias", "encoding"]
"""How a parameter acts on features: a weight multiplies them as a matrix or a kernel, a scale multiplies each channel,
a bias is added to each channel, and an encoding is a feature itself (a position encoding, a class token)."""

AxisOrder = Literal["plain", "transposed", "volume", "matrices", "tokens", "channels_first"]
"""The order of a parameter's axes, compared with its node's shape: see `ghn.networks.parameter_axes.arrange`."""


class Parameter(NamedTuple):
    """One tensor of a target network, with its name in `named_parameters()`."""

    name: str
    shape: tuple[int, ...]
    role: Role = "weight"
    axis_order: AxisOrder = "plain"

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Operation(NamedTuple):
    """One step of a program.

    Attributes:
        kind: a key of `ghn.networks.functional.KERNELS`, or `image`, `text`, `zeros` or `dropout`.
        inputs: positions in `Program.operations`.
        shape: of the result for one image or text.
        parameters: those that the operation reads. Tied parameters are read by several operations.
        settings: integers. `conv`: strides and paddings (of height and of width), dilation, groups; pools: kernel,
            stride, padding; `subsample`: stride; `attention`: heads; `causal_attention`: heads, and 1 where positions
            are rotations of queries and keys, else 0; none for the others.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    parameters: tuple[Parameter, ...] = ()
    settings: tuple[int, ...] = ()


def flops_of(operation: Operation) -> int:
    """Return the floating-point operations of one operation for one image or text: see `Program.flops`."""
    if operation.kind == "conv":
        return 2 * operation.parameters[0].size * math.prod(operation.shape[1:])
    if operation.kind == "linear":
        return 2 * operation.parameters[0].size * math.prod(operation.shape[:-1])
    if operation.kind in ("attention", "causal_attention"):
        tokens, channels = operation.shape
        return 4 * tokens * tokens * channels
    return 0
