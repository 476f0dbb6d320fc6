"""The nearest of many vectors by the cosine of the angle between them.

Dimensions: Q queries, N candidates, B candidates of a block, H length of a vector, K nearest candidates.
"""

from __future__ import annotations

import numpy as np

BLOCK = 16384
"""Candidates that are compared at a time; their cosines to a thousand queries take 64 MiB."""


def nearest(queries_QH: np.ndarray, candidates_NH: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines, float32 (Q, K), and the positions, int64 (Q, K), of each query's nearest candidates.

    The nearest comes first. There are `count` of them, or as many as there are candidates. Of two that are equally near
    as the last one that counts, either may be returned. A vector of zeros is at a cosine of 0 from all others.
    """
    queries_QH = _of_unit_length(queries_QH)
    count = min(count, len(candidates_NH))
    best_QK = np.full((len(queries_QH), count), -np.inf, dtype=np.float32)
    places_QK = np.zeros((len(queries_QH), count), dtype=np.int64)
    for start in range(0, len(candidates_NH), BLOCK):
        cosines_QB = queries_QH @ _of_unit_length(candidates_NH[start : start + BLOCK]).T
        for query in np.flatnonzero(cosines_QB.max(axis=1) > best_QK[:, -1]):  # few, once the first blocks are done
            nearer = np.flatnonzero(cosines_QB[query] > best_QK[query, -1])
            cosines = np.concatenate([best_QK[query], cosines_QB[query, nearer]])
            places = np.concatenate([places_QK[query], nearer + start])
            order = _of_highest(cosines, count)
            best_QK[query], places_QK[query] = cosines[order], places[order]
    return best_QK, places_QK


def _of_highest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the highest values, in decreasing order of these; equal ones keep their order."""
    if len(values) > 4 * count:
        values_of = np.sort(np.argpartition(-values, count)[:count])
        return values_of[np.argsort(-values[values_of], kind="stable")]
    return np.argsort(-values, kind="stable")[:count]


def _of_unit_length(vectors_NH: np.ndarray) -> np.ndarray:
    """Return vectors of length 1 in single precision; those of length 0 stay as they are."""
    vectors_NH = vectors_NH.astype(np.float32)
    lengths_N1 = np.sqrt(np.einsum("nh,nh->n", vectors_NH, vectors_NH))[:, None]
    unit_NH: np.ndarray = np.divide(vectors_NH, lengths_N1, out=vectors_NH, where=lengths_N1 > 0)
    return unit_NH
