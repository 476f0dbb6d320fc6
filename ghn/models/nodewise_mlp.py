"""The MLP baseline, which updates each node alone.

Source: Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", NeurIPS 2021, section 5.

Dimensions: N nodes, H hidden.
"""

from __future__ import annotations

from torch import Tensor, nn

from ghn.models.gnn import GNN
from ghn.networks.graph_batch import GraphBatch


class NodewiseMLP(GNN):
    """An MLP H→H→H with a ReLU after each layer, in place of message passing."""

    def __init__(self, hidden: int):
        super().__init__()
        layers = (nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)  # checkpoints name the weights `gnn.0.weight`, `gnn.2.weight`

    def forward(self, h_NH: Tensor, batch: GraphBatch) -> Tensor:
        """Return the updated states (N, H) of states (N, H); the edges are not read."""
        for layer in self.children():
            h_NH = layer(h_NH)
        return h_NH
