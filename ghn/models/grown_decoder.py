"""The grown decoder: blocks of out channels one after another, each knowing those before.

Where the convolutional decoder repeats its channels, this one decodes further blocks, from states that a recurrent cell
changes in view of the blocks so far.

Dimensions: M nodes of a group, H hidden, W channels of a block, O/I out/in channels, Y×X kernel positions, F = I·Y·X.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghn.models.conv_decoder import ConvDecoder
from ghn.networks.parameter_axes import Shape


class GrownDecoder(ConvDecoder):
    """A convolutional decoder whose out channels beyond the first W are further blocks of W.

    After each block, a gated recurrent unit reads the mean and the mean square of each of its out channels, and updates
    the state that the next block is decoded from. The first block is that of the ordinary decoder. In channels beyond W
    repeat. Arguments are those of `ConvDecoder`.
    """

    def __init__(self, hidden: int, kernel: int, num_classes: int, channels: int | None = None):
        super().__init__(hidden, kernel, num_classes, channels)
        self.cell = nn.GRUCell(2 * self.max_channels, hidden)

    def decoded_shape(self, shape: Shape, is_class_layer: bool) -> Shape:
        """Return O, I, Y and X that are decoded for a target of a shape: any number of out channels."""
        _, *others = super().decoded_shape(shape, is_class_layer)
        inputs, height, width = others
        return (self.max_channels if is_class_layer else shape[0]), inputs, height, width

    def forward(self, states: Sequence[Tensor], sizes: Sequence[Shape]) -> list[Tensor]:
        """Return for each group of nodes its weights (M, O, I, Y, X).

        Args:
            states: the states (M, H) of each group.
            sizes: O, I, Y and X of each group, a decoded shape.
        """
        W = self.max_channels
        current = list(states)
        blocks: list[list[Tensor]] = [[] for _ in states]
        growing = list(range(len(sizes)))
        while growing:
            left = {group: sizes[group][0] - W * len(blocks[group]) for group in growing}
            shapes = [(min(left[group], W), *sizes[group][1:]) for group in growing]
            decoded = super().forward([current[group] for group in growing], shapes)
            for group, block_MOIYX in zip(growing, decoded, strict=True):
                blocks[group].append(block_MOIYX)
            growing = [group for group in growing if left[group] > W]
            for group in growing:
                block_MOF = blocks[group][-1].flatten(2)
                summary = torch.cat([block_MOF.mean(2), block_MOF.square().mean(2)], 1)
                current[group] = self.cell(summary, current[group])
        return [of_group[0] if len(of_group) == 1 else torch.cat(of_group, 1) for of_group in blocks]
