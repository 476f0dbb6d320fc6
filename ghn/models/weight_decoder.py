"""The interface of weight decoders.

Dimensions: M nodes of a group, H hidden, O/I out/in channels, Y×X kernel positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ghn.networks.parameter_axes import Shape


class WeightDecoder(nn.Module, ABC):
    """A network from the states of nodes to weights with out channels, in channels and two kernel axes.

    `ghn.models.parameter_decoder.ParameterDecoder` asks for no more than the largest sizes; it repeats channels and
    resizes kernels beyond them.

    Args:
        max_channels: the most out and in channels that are decoded.
        max_kernel: the largest kernel that is decoded, in positions a side.
        class_channels: the out channels of the weights that `classification` reads.
    """

    def __init__(self, max_channels: int, max_kernel: int, class_channels: int):
        super().__init__()
        self.max_channels, self.max_kernel, self.class_channels = max_channels, max_kernel, class_channels

    @abstractmethod
    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        """Return for each group of nodes its weights (M, O, I, Y, X).

        Args:
            states: the states (M, H) of each group.
            sizes: O, I, Y and X of each group.
        """

    @abstractmethod
    def classification(self, weights_MOI11: Tensor) -> Tensor:
        """Return classification weights (M, classes, I) of decoded weights (M, class_channels, I, 1, 1)."""

    @abstractmethod
    def last_layers(self) -> list[nn.Linear]:
        """Return the linear layers whose outputs are the predicted numbers."""
