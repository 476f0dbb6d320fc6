"""Whether two graphs are the same but for the order of their nodes, told by labels and distances.

N is the number of nodes. Colours, that equal nodes have in common, propose a matching and an exact comparison
decides. So a collision of colours costs time, but never gives a wrong answer.
"""

from __future__ import annotations

import numpy as np

LONGEST = 1 << 15
"""More than any distance in a graph."""


def find_matching(
    labels: np.ndarray, distances: np.ndarray, other_labels: np.ndarray, other_distances: np.ndarray
) -> np.ndarray | None:
    """For each node of a graph the one of another that is equal to it; None if the graphs differ.

    Args:
        labels, other_labels: integers (N,) that equal nodes have in common.
        distances, other_distances: from each node to each, integers (N, N), 0 where there is no path.

    Returns:
        Positions p (N,), every one once, with `labels == other_labels[p]` and
        `distances == other_distances[p][:, p]`.
    """
    if len(labels) != len(other_labels):
        return None
    return _match(labels, _Distances(distances), other_labels, _Distances(other_distances))


class _Distances:
    """Distances, and a pseudo-random factor for each by which colours go along it."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.factors = FACTORS[values]


def _match(labels: np.ndarray, distances: _Distances, others: np.ndarray, to_others: _Distances) -> np.ndarray | None:
    colours, other_colours = _colours(labels, distances), _colours(others, to_others)
    order, other_order = np.argsort(colours, kind="stable"), np.argsort(other_colours, kind="stable")
    colours = colours[order]
    if not np.array_equal(colours, other_colours[other_order]):
        return None
    matching = np.empty_like(order)
    matching[order] = other_order
    rearranged = to_others.values[matching][:, matching]  # several times as fast as by np.ix_
    if np.array_equal(labels, others[matching]) and np.array_equal(distances.values, rearranged):
        return matching
    repeated = np.flatnonzero(colours[1:] == colours[:-1])
    if len(repeated) == 0:
        return None
    # The colours leave a choice, and it was made wrongly: choose for one node, and let them tell what follows.
    node, candidates = order[repeated[0]], other_order[colours == colours[repeated[0]]]
    new = max(labels.max(), others.max()) + 1
    for candidate in candidates:
        if labels[node] == others[candidate]:
            chosen = _match(_with(labels, node, new), distances, _with(others, candidate, new), to_others)
            if chosen is not None:
                return chosen
    return None


def _with(labels: np.ndarray, node: np.intp, label: int) -> np.ndarray:
    labels = labels.copy()
    labels[node] = label
    return labels


def _colours(labels: np.ndarray, distances: _Distances) -> np.ndarray:
    """Numbers (N,) that two nodes have in common if they cannot be told apart by labels and distances.

    Colour refinement (Weisfeiler and Leman, 1968) along all distances at once: a node's next colour comes from its
    own, and from those of the nodes at each distance before and behind it.
    """
    colours = _scrambled(labels)
    classes = 0
    while True:
        before = colours @ distances.factors
        behind = distances.factors @ colours
        colours = _scrambled(colours + _scrambled(before + _scrambled(behind)))
        found = len(np.unique(colours))
        if found in (classes, len(colours)):
            return colours
        classes = found


def _scrambled(values: np.ndarray) -> np.ndarray:
    """64-bit numbers (N,) that look random, a function of the integers given (the finalizer of splitmix64)."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


FACTORS = np.where(np.arange(LONGEST) == 0, np.uint64(0), _scrambled(np.arange(LONGEST)))
