"""Several graphs as one, which a hypernetwork reads together.

Dimensions: N nodes, E edges, L levels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ghn.networks.graph import Graph, Node


@dataclass(frozen=True)
class GraphBatch:
    """Several graphs as one, with nodes sorted by level so that a level is a contiguous range."""

    nodes: tuple[Node, ...]
    num_graphs: int
    graph_of: np.ndarray
    """The number of each node's graph, int64 (N,)."""
    level_bounds: np.ndarray
    """Where the levels begin, and where the last one ends, int64 (L + 1,)."""
    sources: np.ndarray
    """The source of each edge, a position in `nodes`, int64 (E,). Virtual edges are edges too."""
    targets: np.ndarray
    """The target of each edge, a position in `nodes`, int64 (E,)."""
    distances: np.ndarray
    """The distance from the source to the target of each edge, in direct edges, int16 (E,)."""
    cache: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)
    """What a hypernetwork has computed of the graphs, by a key of its own."""

    @property
    def num_nodes(self) -> int:
        """The number of nodes of all graphs, N."""
        return len(self.nodes)

    @classmethod
    def of(cls, graphs: Sequence[Graph], longest_virtual_edge: int) -> GraphBatch:
        """Return the batch of several graphs.

        Args:
            longest_virtual_edge: s_max, in direct edges; 1: no virtual edges.
        """
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
