"""The interface of weight decoders.

Dimensions: M nodes of a group, H hidden, O/I out/in channels, Y×X kernel positions, n the length of a vector; 2 stands
for the rows of scales and of biases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ghn.networks.parameter_axes import Shape


class WeightDecoder(nn.Module, ABC):
    """A network from the states of nodes to weights with out channels, in channels and two kernel axes.

    `ghn.models.parameter_decoder.ParameterDecoder` asks for `decoded_shape` of each target, and repeats channels and
    resizes kernels beyond it.

    Attributes:
        has_class_rows: whether class layers have weights of their own for each class, in `classification`.
        decodes_vectors: whether `vectors` decodes scales and biases too, in place of a decoder of their own.
        most_rank: the highest rank of decoded weights, as matrices; None: any.
    """

    has_class_rows: bool = False
    decodes_vectors: bool = False
    most_rank: int | None = None

    @abstractmethod
    def decoded_shape(self, shape: Shape, is_class_layer: bool) -> Shape:
        """Return O, I, Y and X that are decoded for a target of a shape."""

    @abstractmethod
    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        """Return for each group of nodes its weights (M, O, I, Y, X).

        Args:
            states: the states (M, H) of each group.
            sizes: O, I, Y and X of each group, a decoded shape.
        """

    def classification(self, weights_MOI11: Tensor) -> Tensor:
        """Return classification weights (M, classes, I) of what is decoded for class layers, (M, O, I, 1, 1)."""
        raise NotImplementedError(f"{type(self).__name__} has no rows of classes")

    def vectors(self, h_MH: Tensor, length: int) -> Tensor:
        """Return the two rows (M, 2, ·) of nodes with states (M, H), for vectors (n,); they may repeat or be cut."""
        raise NotImplementedError(f"{type(self).__name__} does not decode vectors")

    def last_layers(self) -> list[nn.Linear]:
        """Return the linear layers that make predictions smaller in proportion; `small_start` shrinks them."""
        return []
