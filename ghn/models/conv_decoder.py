"""The convolutional decoder of weights.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, appendix B.

Dimensions: M nodes of a group, H hidden, S largest kernel, W most channels, O/I out/in channels, Y×X kernel
positions, P = Y·X, F features of a position, K classes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn.models.weight_decoder import WeightDecoder
from ghn.networks.parameter_axes import Shape


class ConvDecoder(WeightDecoder):
    """A decoder of weights with two or more dimensions.

    Linear H→4H·S·S and ReLU, viewed as (4H, S, S); 1×1 convolutions to 8H (ReLU) and to W·W channels, viewed
    as (W out, W in, S, S). The classification layer takes the tensor at 1×1, ReLU and a 1×1 convolution
    W→classes along the out axis.

    Args:
        hidden: H.
        kernel: S.
        num_classes: K.
        channels: W, by default 2H.
        central: whether a kernel smaller than S is the middle of it (from ⌊S/2⌋ - ⌊k/2⌋), as in GHN-3, and not the
            upper left corner.
    """

    has_class_rows = True

    def __init__(self, hidden: int, kernel: int, num_classes: int, channels: int | None = None, central: bool = False):
        super().__init__()
        channels = 2 * hidden if channels is None else channels
        self.hidden, self.max_channels, self.max_kernel, self.central = hidden, channels, kernel, central
        self.expand = nn.Linear(hidden, 4 * hidden * kernel * kernel)
        self.mix = nn.Linear(4 * hidden, 8 * hidden)
        self.channels = nn.Linear(8 * hidden, channels * channels)
        self.classes = nn.Linear(channels, num_classes)

    def decoded_shape(self, shape: Shape, is_class_layer: bool) -> Shape:
        """Return O, I, Y and X that are decoded for a target of a shape: at most W, W, S and S."""
        out, inputs, height, width = shape
        W, S = self.max_channels, self.max_kernel
        return (W if is_class_layer else min(out, W)), min(inputs, W), min(height, S), min(width, S)

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
        positions = [(self._positions(height), self._positions(width)) for height, width in kernels]
        expand_weights = _Parts.apply(self.expand.weight.view(4 * H, S, S, H).permute(1, 2, 0, 3), positions)
        expand_biases = _Parts.apply(self.expand.bias.view(4 * H, S, S).permute(1, 2, 0), positions)
        leading = [(slice(out), slice(inputs)) for out, inputs in channels]
        channel_weights = _Parts.apply(self.channels.weight.view(W, W, 8 * H), leading)
        channel_biases = _Parts.apply(self.channels.bias.view(W, W), leading)
        # Groups with the same kernel, then with the same channels, share one product: its gradient is as large as all
        # weights, and each product is a launch on a GPU.
        inner = self._inner(
            states,
            [kernels.index((height, width)) for *_, height, width in sizes],
            zip(expand_weights, expand_biases, strict=True),
        )
        expanded: dict[tuple[int, int], list[Tensor]] = defaultdict(list)  # in the order of `channels`
        for inner_PF, (out, inputs, *_) in zip(inner, sizes, strict=True):
            expanded[out, inputs].append(inner_PF)
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

    def _inner(
        self, states: Sequence[Tensor], kernels: Sequence[int], layers: Iterable[tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        """Return for each group of nodes the features (M·P, 4H) of all kernel positions.

        Args:
            states: the states (M, H) of each group.
            kernels: the number of each group's kernel.
            layers: weights and biases of each kernel's positions, in the order of their numbers.
        """
        inner: dict[int, Tensor] = {}
        for kernel, (weight, bias) in enumerate(layers):
            members = [group for group, of_group in enumerate(kernels) if of_group == kernel]
            h_MH = torch.cat([states[group] for group in members])
            rows_MF = F.relu(F.linear(h_MH, weight.view(-1, self.hidden), bias.view(-1)))
            parts = rows_MF.split_with_sizes([len(states[group]) for group in members])
            inner.update(zip(members, (part.view(-1, 4 * self.hidden) for part in parts), strict=True))
        return [inner[group] for group in range(len(states))]

    def _positions(self, size: int) -> slice:
        """Return where a kernel of so many positions a side lies in the largest one."""
        first = self.max_kernel // 2 - size // 2 if self.central else 0
        return slice(first, first + size)

    def classification(self, weights_MOI11: Tensor) -> Tensor:
        """Return classification weights (M, classes, I) of decoded weights (M, W, I, 1, 1)."""
        x_MIO = F.relu(weights_MOI11[..., 0, 0]).transpose(1, 2)
        weights_MIK: Tensor = self.classes(x_MIO)
        return weights_MIK.transpose(1, 2)

    def last_layers(self) -> list[nn.Linear]:
        """Return the linear layers whose outputs are the predicted numbers."""
        return [self.channels, self.classes]


class _Parts(torch.autograd.Function):
    """Parts of a table, for several slices of its first two axes, with one gradient for the table.

    Plain slicing would allocate and fill a table of gradients for each part, and add them up.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, slices: list[tuple[slice, slice]]) -> tuple[Tensor, ...]:
        """Return a copy of each part."""
        ctx.slices, ctx.shape = slices, table.shape
        return tuple(table[part].clone(memory_format=torch.contiguous_format) for part in slices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient at the table."""
        total = gradients[0].new_zeros(ctx.shape)
        for part, gradient in zip(ctx.slices, gradients, strict=True):
            total[part] += gradient
        return total, None
