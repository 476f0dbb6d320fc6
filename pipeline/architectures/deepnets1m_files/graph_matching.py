"""Matching of two graphs that may differ in the order of their nodes, by labels and distances.

Colours, which equal nodes have in common, propose a matching, and an exact comparison decides. So a collision of
colours costs time, but never gives a wrong answer.

Dimensions: N nodes.
"""

from __future__ import annotations

import numpy as np

MAX_DISTANCE = 1 << 15
"""More than any distance in a graph."""


def find_matching(
    labels: np.ndarray, distances: np.ndarray, other_labels: np.ndarray, other_distances: np.ndarray
) -> np.ndarray | None:
    """Return the equal node of another graph for each node of a graph; None if the graphs differ.

    Args:
        labels, other_labels: integers (N,) that equal nodes have in common.
        distances, other_distances: from each node to each, integers (N, N), 0 where there is no path.

    Returns:
        A permutation p (N,) with `labels == other_labels[p]` and
        `distances == other_distances[p][:, p]`.
    """
    if len(labels) != len(other_labels):
        return None
    return _match(labels, _Distances(distances), other_labels, _Distances(other_distances))


class _Distances:
    """Distances (N, N), and for each a pseudo-random factor that weights the colour of the node at that distance."""

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
    # Several nodes share a colour, and the proposal was wrong. Match one such node to each candidate in turn, and let
    # the colours decide on the others.
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
    """Return numbers (N,) that are equal for nodes with the same labels and distances in their surroundings.

    This is colour refinement (Weisfeiler and Leman, 1968) over all distances at once: a node's next colour depends on
    its own colour, and on the colours of the nodes at each distance before and behind it.
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
    """Return 64-bit numbers (N,) that look random, a function of integers (N,): the finalizer of splitmix64."""
    z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


FACTORS = np.where(np.arange(MAX_DISTANCE) == 0, np.uint64(0), _scrambled(np.arange(MAX_DISTANCE)))
