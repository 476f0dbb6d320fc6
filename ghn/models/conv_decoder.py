"""The convolutional decoder of weights.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, appendix B.

Dimensions: n nodes of a group, H hidden, S largest kernel, O/I out/in channels, Y×X kernel positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn.networks.parameter_axes import Shape


class ConvDecoder(nn.Module):
    """Decodes weights with two or more dimensions.

    Linear H→4H·S·S and ReLU, viewed as (4H, S, S); 1×1 convolutions to 8H (ReLU) and to 2H·2H channels, viewed
    as (2H out, 2H in, S, S). The classification layer takes the tensor at 1×1, ReLU and a 1×1 convolution
    2H→classes along the out axis.
    """

    def __init__(self, hidden: int, kernel: int, num_classes: int):
        super().__init__()
        self.hidden, self.kernel = hidden, kernel
        self.expand = nn.Linear(hidden, 4 * hidden * kernel * kernel)
        self.mix = nn.Linear(4 * hidden, 8 * hidden)
        self.channels = nn.Linear(8 * hidden, 2 * hidden * 2 * hidden)
        self.classes = nn.Linear(2 * hidden, num_classes)

    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        """For each group of nodes, with states (n, H), weights (n, out, inputs, kh, kw) of its sizes.

        No size may be larger than the largest. Only the needed part is computed.
        """
        H, S, W = self.hidden, self.kernel, 2 * self.hidden
        kernels = list(dict.fromkeys((kh, kw) for _, _, kh, kw in sizes))
        channels = list(dict.fromkeys((out, inputs) for out, inputs, _, _ in sizes))
        expand_weight = _Corners.apply(self.expand.weight.view(4 * H, S, S, H).permute(1, 2, 0, 3), kernels)
        expand_bias = _Corners.apply(self.expand.bias.view(4 * H, S, S).permute(1, 2, 0), kernels)
        channel_weight = _Corners.apply(self.channels.weight.view(W, W, 8 * H), channels)
        channel_bias = _Corners.apply(self.channels.bias.view(W, W), channels)
        decoded = []
        for h, (out, inputs, kh, kw) in zip(states, sizes, strict=True):
            kernel, channel = kernels.index((kh, kw)), channels.index((out, inputs))
            weight, bias = expand_weight[kernel].view(-1, H), expand_bias[kernel].view(-1)
            positions = F.relu(F.linear(h, weight, bias)).view(len(h), kh * kw, 4 * H)
            positions = F.relu(self.mix(positions))
            weight, bias = channel_weight[channel].view(out * inputs, -1), channel_bias[channel].view(-1)
            weights = F.linear(positions, weight, bias)
            decoded.append(weights.transpose(1, 2).reshape(len(h), out, inputs, kh, kw))
        return decoded

    def classification(self, weights: Tensor) -> Tensor:
        """The classification weights (n, classes, inputs) from decoded ones (n, 2H, inputs, 1, 1)."""
        return self.classes(F.relu(weights[..., 0, 0]).transpose(1, 2)).transpose(1, 2)


class _Corners(torch.autograd.Function):
    """The leading parts `table[:a, :b]` for several (a, b); their gradients are added up in one table.

    Plain slicing would make, fill and add one table of gradients a part.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        ctx.sizes, ctx.shape = sizes, table.shape
        return tuple(table[:a, :b].contiguous().clone() for a, b in sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].new_zeros(ctx.shape)
        for (a, b), gradient in zip(ctx.sizes, gradients, strict=True):
            total[:a, :b] += gradient
        return total, None
