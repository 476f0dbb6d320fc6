"""Statistics of graphs that say how a network is wired, not how large its parameters are.

Dimensions: N nodes.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from ghn.networks.graph import PRIMITIVES, Graph


class GraphStatistics(NamedTuple):
    """Statistics of one graph; `path` and `diameter` are of paths along edges in both directions."""

    degree: float
    """The mean over all nodes of the number of edges at a node: see `average_degree`."""
    path: float
    """The mean length of a shortest path, in edges: see `average_path`."""
    diameter: int
    """The length of the longest shortest path, in edges."""
    depth: int
    """The length of the longest path along the direction of the edges, in edges."""
    shares: tuple[float, ...]
    """The share of the nodes that are of each of `PRIMITIVES`."""


def statistics_of_graph(graph: Graph) -> GraphStatistics:
    """Return the statistics of a connected graph."""
    N = len(graph.nodes)
    paths_NN = undirected_paths(graph)
    counts = Counter(graph.primitives)
    return GraphStatistics(
        degree=average_degree(graph),
        path=float(paths_NN.sum() / (N * (N - 1))),
        diameter=int(paths_NN.max()),
        depth=int(graph.levels.max()),
        shares=tuple(counts[primitive] / N for primitive in PRIMITIVES),
    )


def average_degree(graph: Graph) -> float:
    """Return the mean over all nodes of the number of edges at a node, in both directions: 2 E / N."""
    return 2 * len(graph.edges) / len(graph.nodes)


def average_path(graph: Graph) -> float:
    """Return the mean over all pairs of different nodes of the number of edges on a shortest path between them.

    Paths lead along edges in both directions, without virtual edges, because the published figures are defined so. The
    distances that a hypernetwork sees, `Graph.distances`, are those along the direction of the edges.
    """
    N = len(graph.nodes)
    return float(undirected_paths(graph).sum() / (N * (N - 1)))


def undirected_paths(graph: Graph) -> np.ndarray:
    """Return the lengths (N, N) in edges of shortest paths along edges in both directions; infinite without a path."""
    N = len(graph.nodes)
    sources, targets = np.array(graph.edges).T
    edges_NN = csr_array((np.ones(len(sources)), (sources, targets)), shape=(N, N))
    paths_NN: np.ndarray = shortest_path(edges_NN, directed=False, unweighted=True)
    return paths_NN
