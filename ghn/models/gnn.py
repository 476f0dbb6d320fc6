"""The interface of graph neural networks.

Dimensions: N nodes, H hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ghn.networks.graph_batch import GraphBatch


class GNN(nn.Module, ABC):
    """A network that updates the states of a batch's nodes along its edges.

    Attributes:
        longest_edge: the longest distance between two nodes, in edges, that is an edge of the batches that it reads. 1
            means direct edges only; the others are virtual edges.
    """

    longest_edge: int = 1

    @abstractmethod
    def forward(self, h_NH: Tensor, batch: GraphBatch) -> Tensor:
        """Return the updated states (N, H) of states (N, H), both in the order of `batch.nodes`."""

    def prepare(self, batch: GraphBatch) -> None:
        """Compute what `forward` needs of a batch beside its states, and keep it in `batch.cache`.

        So it can be done ahead, with the graphs of the next steps.
        """
