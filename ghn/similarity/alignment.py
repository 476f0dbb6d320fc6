"""The alignment of two networks: which parameters of one correspond to which of the other.

The nodes with parameters of both graphs are sequences in topological order. An alignment pairs some nodes of one with
some of the other and keeps their order. Only equal primitives are paired, and class layers only with class layers. A
pair costs

    Σ |log(size / other size)|  +  DEPTH_COST · |relative depth - other relative depth|

with the sum over the four sizes of the shapes, and a node without partner costs GAP_COST. The alignment with the least
cost is found by dynamic programming (Needleman and Wunsch, Journal of Molecular Biology 1970), one vectorised row after
the other. The relative depth of a node is the length of the longest path to it over that of the longest path of all.

Dimensions: T nodes of the target, S nodes of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ghn.networks.graph import PRIMITIVES, Graph, Node

DEPTH_COST = 4.0
"""The cost of a pair of which one node is the first of its network and the other one the last of its own."""

GAP_COST = 3.0
"""The cost of a node without partner; a pair may cost twice that before both nodes rather have none."""


class Pair(NamedTuple):
    """Two nodes that correspond to each other, as positions in their graphs."""

    target: int
    source: int


def align(target: Graph, source: Graph) -> list[Pair]:
    """Return the pairs of the cheapest alignment of two graphs, in their order."""
    targets_T, sources_S = with_parameters(target), with_parameters(source)
    pairs = cheapest_path(pair_costs(target, targets_T, source, sources_S))
    return [Pair(int(targets_T[t]), int(sources_S[s])) for t, s in pairs]


def with_parameters(graph: Graph) -> np.ndarray:
    """Return the positions of the nodes that have parameters."""
    return np.array([position for position, node in enumerate(graph.nodes) if node.parameters], dtype=np.int64)


def pair_costs(target: Graph, targets_T: np.ndarray, source: Graph, sources_S: np.ndarray) -> np.ndarray:
    """Return the cost of each pair of some nodes, float64 (T, S); infinity where they cannot be paired."""
    kind_T, sizes_T4, depth_T = _described(target, targets_T)
    kind_S, sizes_S4, depth_S = _described(source, sources_S)
    costs_TS: np.ndarray = np.abs(sizes_T4[:, None] - sizes_S4).sum(axis=2)
    costs_TS += DEPTH_COST * np.abs(depth_T[:, None] - depth_S)
    costs_TS[kind_T[:, None] != kind_S] = np.inf
    return costs_TS


def cheapest_path(costs_TS: np.ndarray, gap_cost: float = GAP_COST) -> list[tuple[int, int]]:
    """Return the pairs, in increasing order of both, whose costs and those of all gaps have the least sum."""
    totals = _cumulated(costs_TS, gap_cost)
    pairs = []
    t, s = costs_TS.shape
    while t and s:
        steps = (
            totals[t - 1, s - 1] + costs_TS[t - 1, s - 1],
            totals[t - 1, s] + gap_cost,
            totals[t, s - 1] + gap_cost,
        )
        step = int(np.argmin(steps))
        if step == 0:
            pairs.append((t - 1, s - 1))
        t, s = t - (step != 2), s - (step != 1)
    return pairs[::-1]


def _cumulated(costs_TS: np.ndarray, gap_cost: float) -> np.ndarray:
    """Return the least cost of aligning the first t nodes with the first s nodes, (T + 1, S + 1).

    Within a row, gaps follow from the running minimum of the costs without the gaps before them.
    """
    T, S = costs_TS.shape
    gaps = gap_cost * np.arange(S + 1)
    totals = np.empty((T + 1, S + 1))
    totals[0] = gaps
    for t in range(T):
        row = totals[t] + gap_cost
        np.minimum(row[1:], totals[t, :-1] + costs_TS[t], out=row[1:])
        totals[t + 1] = np.minimum.accumulate(row - gaps) + gaps
    return totals


def _described(graph: Graph, positions_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of some nodes the kinds (N,), the logarithms of the sizes (N, 4) and the relative depths (N,)."""
    nodes: Sequence[Node] = [graph.nodes[position] for position in positions_N]
    kinds_N = np.array([2 * PRIMITIVES.index(node.primitive) + node.is_class_layer for node in nodes], dtype=np.int64)
    sizes_N4 = np.log(np.array([node.shape for node in nodes], dtype=np.float64).reshape(-1, 4))
    return kinds_N, sizes_N4, graph.levels[positions_N] / max(graph.levels.max(), 1)
