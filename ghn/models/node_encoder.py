"""The input states of a graph's nodes.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, section 3.

Dimensions: N nodes, H hidden; 5 stands for the primitive, out channels, in channels, kernel height and kernel width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ghn.networks.devices import upload
from ghn.networks.graph import PRIMITIVES
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.parameter_axes import Shape


class NodeEncoder(nn.Module):
    """An encoder of nodes: x = E_op[primitive] + [E_ch[out] ; E_ch[in] ; E_sp[kh] ; E_sp[kw]].

    Channels and kernel sizes outside their vocabularies take the nearest entry. The last entry of each vocabulary
    stands for "no shape".
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
        """Return the states (N, H) of a batch's nodes before message passing."""
        rows = [(_PRIMITIVE_ENTRY[node.primitive], *self._entries(node.shape)) for node in batch.nodes]
        entries_N5 = upload(torch.tensor(rows), self.primitives.weight.device)
        sizes = [self.channels(entries_N5[:, 1:3]).flatten(1), self.spatial(entries_N5[:, 3:]).flatten(1)]
        h_NH: Tensor = self.primitives(entries_N5[:, 0]) + torch.cat(sizes, 1)
        return h_NH

    def _entries(self, shape: Shape | None) -> Shape:
        """Return the entries of a node's four sizes in their vocabularies."""
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
    """Return the numbers of channels that have an embedding of their own, sorted."""
    return sorted({1, 3, num_classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)})


def spatial_vocabulary(kernel: int) -> list[int]:
    """Return the kernel sizes that have an embedding of their own, sorted; `kernel` is the largest predicted one."""
    return sorted({*range(1, max(11, kernel - 1) + 1, 2), 14, 16})


def nearest_entries(vocabulary: list[int]) -> list[int]:
    """Return for each value from 0 to the vocabulary's last the entry nearest to it, the smaller one on a tie.

    As published, 2 takes the entry of 3, and channels 4 to 7 that of 8.
    """
    values = np.arange(vocabulary[-1] + 1)
    entries: list[int] = np.abs(values[:, None] - np.array(vocabulary)).argmin(1).tolist()
    exceptions = {2: 3} | ({value: 8 for value in range(4, 8)} if 8 in vocabulary else {})
    for value, substitute in exceptions.items():
        if value not in vocabulary:
            entries[value] = vocabulary.index(substitute)
    return entries
