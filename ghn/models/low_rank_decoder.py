"""The low-rank decoder of LoGAH: weights of any width without repetition.

Source: Zhou et al., "LoGAH: Predicting 774-Million-Parameter Transformers using Graph HyperNetworks with 1/100
Parameters", 2024, section 3.

Dimensions: M nodes of a group, H hidden, r rank, K rows of a factor, R×C rows and columns of a product, O/I out/in
channels, Y×X kernel positions, n the length of a vector; 2 stands for the rows of scales and of biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn.models.weight_decoder import WeightDecoder
from ghn.networks.parameter_axes import Shape


class LowRankDecoder(WeightDecoder):
    """A decoder of two factors: a weight, as a matrix (O·Y, I·X), is A·Bᵀ with A (O·Y, r) and B (I·X, r).

    An MLP H→4H→8H→2r·r is viewed as (2r, r); ReLU and a linear layer r→K make (2r, K) of it, whose numbers in their
    order are (2K, r): the first K rows are those of A, the others those of B. Only the needed rows are computed. A
    scale and a bias of n are the halves of a vector of 2n. Class layers are matrices like any other.

    Args:
        hidden: H.
        rank: r.
        channels: the most out and in channels that are decoded before they repeat.
        kernel: the largest kernel that is decoded, in positions a side.
        extent: K, by default twice `channels`.
    """

    decodes_vectors = True

    def __init__(self, hidden: int, rank: int, channels: int, kernel: int, extent: int | None = None):
        super().__init__()
        self.rank = self.most_rank = rank
        self.max_channels, self.max_kernel = channels, kernel
        self.extent = 2 * channels if extent is None else extent
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden),
            nn.ReLU(),
            nn.Linear(4 * hidden, 8 * hidden),
            nn.ReLU(),
            nn.Linear(8 * hidden, 2 * rank * rank),
        )
        self.rows = nn.Linear(rank, self.extent)

    def decoded_shape(self, shape: Shape, is_class_layer: bool) -> Shape:
        """Return O, I, Y and X that are decoded for a target of a shape: O·Y and I·X are at most K."""
        out, inputs, *kernel = shape
        height, width = (min(size, self.max_kernel, self.extent) for size in kernel)
        most = self.max_channels
        return min(out, most, self.extent // height), min(inputs, most, self.extent // width), height, width

    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        """Return for each group of nodes its weights (M, O, I, Y, X).

        Args:
            states: the states (M, H) of each group.
            sizes: O, I, Y and X of each group, a decoded shape.
        """
        weights = []
        for h_MH, (out, inputs, height, width) in zip(states, sizes, strict=True):
            product_MRC = self._product(h_MH, out * height, inputs * width)
            weights.append(product_MRC.view(-1, out, height, inputs, width).transpose(2, 3))
        return weights

    def vectors(self, h_MH: Tensor, length: int) -> Tensor:
        """Return the two rows (M, 2, ·) of nodes with states (M, H), for vectors (n,).

        As published, a multiple of 3 counts as 4/3 of it, and a length of half the most channels or more as the most.
        """
        if length % 3 == 0:
            length = length * 4 // 3
        if 2 * length >= self.max_channels:
            length = self.max_channels
        length = min(length, self.extent // 2)
        return self._product(h_MH, 2 * length, 1).view(len(h_MH), 2, length)

    def last_layers(self) -> list[nn.Linear]:
        """Return the layer of both factors, so that its share counts twice."""
        return [self.rows]

    def _product(self, h_MH: Tensor, rows: int, columns: int) -> Tensor:
        """Return the products (M, rows, columns) of as many rows of A and of B."""
        r = self.rank
        x_M2rr = F.relu(self.mlp(h_MH)).view(-1, 2 * r, r)
        factors = []
        for first, count in ((0, rows), (r, columns)):
            lines = -(-count * r // self.extent)  # of (2r, K), each K numbers of the factor
            numbers: Tensor = self.rows(x_M2rr[:, first : first + lines])
            factors.append(numbers.flatten(1)[:, : count * r].view(-1, count, r))
        return torch.bmm(factors[0], factors[1].transpose(1, 2))
