"""The primitives, shapes and edges of a graph as arrays, for computations over many graphs.

Dimensions: N nodes, E edges, 5 columns of a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ghn.networks.graph import PRIMITIVES, Graph, Node

NO_SIZE = -1
"""Stands for each size of a node without a shape."""


class NodeTable(NamedTuple):
    """The nodes and the direct edges of one graph, or of several graphs one after the other."""

    nodes_N5: np.ndarray
    """The position of each node's primitive in `PRIMITIVES`, and the four sizes of its shape, int32."""
    edges_E2: np.ndarray
    """Source and target of each edge, rows of `nodes_N5`, int32."""


def row_of(node: Node) -> tuple[int, ...]:
    """Return the row of a node: its primitive and the four sizes of its shape."""
    return PRIMITIVES.index(node.primitive), *(node.shape or (NO_SIZE,) * 4)


def table_of(graph: Graph) -> NodeTable:
    """Return the table of a graph, in the order of its nodes and edges."""
    nodes_N5 = np.array([row_of(node) for node in graph.nodes], dtype=np.int32).reshape(-1, 5)
    return NodeTable(nodes_N5, np.array(graph.edges, dtype=np.int32).reshape(-1, 2))


def joined(tables: Sequence[NodeTable]) -> tuple[NodeTable, np.ndarray]:
    """Return several tables as one, and the number of nodes of each; there must be at least one."""
    sizes = np.array([len(table.nodes_N5) for table in tables])
    starts = np.cumsum(sizes) - sizes
    shifts = np.repeat(starts.astype(np.int32), [len(table.edges_E2) for table in tables])
    edges_E2 = np.concatenate([table.edges_E2 for table in tables]) + shifts[:, None]
    return NodeTable(np.concatenate([table.nodes_N5 for table in tables]), edges_E2), sizes
