"""The convolutional decoder of weights.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, appendix B.

Dimensions: M nodes of a group, H hidden, S largest kernel, W = 2H most channels, O/I out/in channels, Y×X kernel
positions, P = Y·X, F features of a position, K classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn.models.weight_decoder import WeightDecoder
from ghn.networks.parameter_axes import Shape


class ConvDecoder(WeightDecoder):
    """A decoder of weights with two or more dimensions.

    Linear H→4H·S·S and ReLU, viewed as (4H, S, S); 1×1 convolutions to 8H (ReLU) and to 2H·2H channels, viewed
    as (2H out, 2H in, S, S). The classification layer takes the tensor at 1×1, ReLU and a 1×1 convolution
    2H→classes along the out axis.
    """

    def __init__(self, hidden: int, kernel: int, num_classes: int):
        super().__init__(max_channels=2 * hidden, max_kernel=kernel, class_channels=2 * hidden)
        self.hidden = hidden
        self.expand = nn.Linear(hidden, 4 * hidden * kernel * kernel)
        self.mix = nn.Linear(4 * hidden, 8 * hidden)
        self.channels = nn.Linear(8 * hidden, 2 * hidden * 2 * hidden)
        self.classes = nn.Linear(2 * hidden, num_classes)

    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        """Return for each group of nodes its weights (M, O, I, Y, X); only the needed part is computed.

        Args:
            states: the states (M, H) of each group.
            sizes: O, I, Y and X of each group, at most W, W, S and S.
        """
        if not sizes:
            return []
        H, S, W = self.hidden, self.max_kernel, self.max_channels
        kernels = list(dict.fromkeys((height, width) for _, _, height, width in sizes))
        channels = list(dict.fromkeys((out, inputs) for out, inputs, _, _ in sizes))
        expand_weights = _Corners.apply(self.expand.weight.view(4 * H, S, S, H).permute(1, 2, 0, 3), kernels)
        expand_biases = _Corners.apply(self.expand.bias.view(4 * H, S, S).permute(1, 2, 0), kernels)
        channel_weights = _Corners.apply(self.channels.weight.view(W, W, 8 * H), channels)
        channel_biases = _Corners.apply(self.channels.bias.view(W, W), channels)
        # Groups with the same channels share one product, because its gradient is as large as all weights.
        expanded: dict[tuple[int, int], list[Tensor]] = defaultdict(list)  # in the order of `channels`
        for h_MH, (out, inputs, height, width) in zip(states, sizes, strict=True):
            kernel = kernels.index((height, width))
            weight, bias = expand_weights[kernel].view(-1, H), expand_biases[kernel].view(-1)
            expanded[out, inputs].append(F.relu(F.linear(h_MH, weight, bias)).view(-1, 4 * H))
        lengths = {pair: [len(rows) for rows in parts] for pair, parts in expanded.items()}
        mixed = F.relu(self.mix(torch.cat([rows for parts in expanded.values() for rows in parts])))
        decoded: dict[tuple[int, int], Iterator[Tensor]] = {}
        for pair, rows, weight, bias in zip(
            channels,
            mixed.split_with_sizes([sum(of_pair) for of_pair in lengths.values()]),
            channel_weights,
            channel_biases,
            strict=True,
        ):
            products = F.linear(rows, weight.view(math.prod(pair), -1), bias.view(-1))
            decoded[pair] = iter(products.split_with_sizes(lengths[pair]))
        return [
            next(decoded[out, inputs])
            .view(len(h_MH), height * width, out * inputs)
            .transpose(1, 2)
            .reshape(len(h_MH), out, inputs, height, width)
            for h_MH, (out, inputs, height, width) in zip(states, sizes, strict=True)
        ]

    def classification(self, weights_MOI11: Tensor) -> Tensor:
        """Return classification weights (M, classes, I) of decoded weights (M, W, I, 1, 1)."""
        x_MIO = F.relu(weights_MOI11[..., 0, 0]).transpose(1, 2)
        weights_MIK: Tensor = self.classes(x_MIO)
        return weights_MIK.transpose(1, 2)


class _Corners(torch.autograd.Function):
    """The leading parts `table[:a, :b]` of a table for several (a, b), with one gradient for the table.

    Plain slicing would allocate and fill a table of gradients for each part, and add them up.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        """Return a copy of each leading part."""
        ctx.sizes, ctx.shape = sizes, table.shape
        return tuple(table[:a, :b].clone(memory_format=torch.contiguous_format) for a, b in sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient at the table."""
        total = gradients[0].new_zeros(ctx.shape)
        for (a, b), gradient in zip(ctx.sizes, gradients, strict=True):
            total[:a, :b] += gradient
        return total, None
