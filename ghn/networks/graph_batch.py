"""Several graphs laid out as one, for the hypernetwork.

Dimensions: N nodes, E edges, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ghn.networks.graph import Graph, Node


@dataclass(frozen=True)
class GraphBatch:
    """Several graphs as one, with nodes sorted by level so that a level is a contiguous range.

    `graph_of` (N,) tells each node's graph; `level_bounds` (L + 1,) where the levels begin; `sources`,
    `targets`, `distances` (E,) are the edges, virtual ones included.
    """

    nodes: tuple[Node, ...]
    num_graphs: int
    graph_of: np.ndarray
    level_bounds: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    distances: np.ndarray

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @classmethod
    def of(cls, graphs: Sequence[Graph], longest_virtual_edge: int) -> GraphBatch:
        """The batch of `graphs`; `longest_virtual_edge` is s_max, 1 for direct edges alone."""
        sizes = [len(graph.nodes) for graph in graphs]
        starts = np.cumsum([0, *sizes[:-1]])
        levels = np.concatenate([graph.levels for graph in graphs])
        order = np.argsort(levels, kind="stable")
        position = np.empty_like(order)
        position[order] = np.arange(len(order))

        edges = [graph.virtual_edges(longest_virtual_edge) for graph in graphs]
        nodes = [node for graph in graphs for node in graph.nodes]
        return cls(
            nodes=tuple(nodes[i] for i in order),
            num_graphs=len(graphs),
            graph_of=np.repeat(np.arange(len(graphs)), sizes)[order],
            level_bounds=np.searchsorted(levels[order], np.arange(levels.max() + 2)),
            sources=position[np.concatenate([u + start for (u, _, _), start in zip(edges, starts, strict=True)])],
            targets=position[np.concatenate([v + start for (_, v, _), start in zip(edges, starts, strict=True)])],
            distances=np.concatenate([d for _, _, d in edges]),
        )
