"""The input states of a graph's nodes.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, section 3.

Dimensions: N nodes, H hidden.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ghn.networks.graph import PRIMITIVES
from ghn.networks.graph_batch import GraphBatch


class NodeEncoder(nn.Module):
    """The input of each node: x = E_op[primitive] + [E_ch[out] ; E_ch[in] ; E_sp[kh] ; E_sp[kw]].

    Channels and spatial sizes outside their vocabularies take the nearest entry; the last entry of each stands
    for "no shape".
    """

    def __init__(self, hidden: int, kernel: int, num_classes: int):
        super().__init__()
        channels = channel_vocabulary(num_classes)
        spatial = spatial_vocabulary(kernel)
        self._channel_entry, self._spatial_entry = nearest_entries(channels), nearest_entries(spatial)
        self._absent = (len(channels), len(spatial))
        self.primitives = nn.Embedding(len(PRIMITIVES), hidden)
        self.channels = nn.Embedding(len(channels) + 1, hidden // 4)
        self.spatial = nn.Embedding(len(spatial) + 1, hidden // 4)

    def forward(self, batch: GraphBatch) -> Tensor:
        """The states (N, H) before message passing."""
        device = self.primitives.weight.device
        primitives = torch.tensor([_PRIMITIVE_ENTRY[node.primitive] for node in batch.nodes], device=device)
        entries = torch.tensor([self._entries(node.shape) for node in batch.nodes], device=device)
        parts = torch.cat([self.channels(entries[:, :2]).flatten(1), self.spatial(entries[:, 2:]).flatten(1)], 1)
        return self.primitives(primitives) + parts

    def _entries(self, shape: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
        if shape is None:
            return (self._absent[0], self._absent[0], self._absent[1], self._absent[1])
        channel, spatial = self._channel_entry, self._spatial_entry
        out, inputs, kh, kw = shape
        last = len(channel) - 1
        return (
            channel[min(out, last)],
            channel[min(inputs, last)],
            spatial[min(kh, len(spatial) - 1)],
            spatial[min(kw, len(spatial) - 1)],
        )


_PRIMITIVE_ENTRY = {name: entry for entry, name in enumerate(PRIMITIVES)}


def channel_vocabulary(num_classes: int) -> list[int]:
    """The numbers of channels that have an embedding of their own, sorted."""
    return sorted({1, 3, num_classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)})


def spatial_vocabulary(kernel: int) -> list[int]:
    """The kernel sizes that have an embedding of their own, sorted."""
    return sorted({*range(1, max(11, kernel - 1) + 1, 2), 14, 16})


def nearest_entries(vocabulary: list[int]) -> list[int]:
    """For each value from 0 to the largest, the entry that stands for it: the nearest one, the smaller on a tie.

    As published, 2 takes 3 and channels 4 to 7 take 8.
    """
    values = np.arange(vocabulary[-1] + 1)
    entries = np.abs(values[:, None] - np.array(vocabulary)).argmin(1)
    exceptions = {2: 3} | ({value: 8 for value in range(4, 8)} if 8 in vocabulary else {})
    for value, stand_in in exceptions.items():
        if value not in vocabulary:
            entries[value] = vocabulary.index(stand_in)
    return entries.tolist()
