"""The order in which images are drawn: a function of a seed and a key alone.

Large sets have more shards than a node should need at a time. So their images lie in the shards in a random order,
always the same, and an epoch goes through shuffled shards in windows: it samples from `WINDOW` of them in random order
while those of the next window are brought.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.images.dataset import ImageSubset
from pipeline.images.shards import WINDOW

# What random numbers are for. The purpose is part of the key, so that no two uses share a stream.
ORDER, SHIFT, FLIP, SHOTS = range(4)


def keyed_rng(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def positions_by_class(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each label that occurs, and its positions, which increase."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    yield from zip(classes.tolist(), np.split(order, starts[1:]), strict=False)  # without labels there is no class


# The order of the images


@dataclass(frozen=True, eq=False)
class _Windows:
    """The order of an epoch: the shards of each window, and the places (windows + 1,) where windows begin and end."""

    shards: list[np.ndarray]
    starts: np.ndarray

    def of(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, places, side="right") - 1


def is_in_windows(part: ImageSubset) -> bool:
    return len(part.bounds) - 1 > WINDOW


def ordered_indices(part: ImageSubset, seed: int, key: tuple[int, ...], places: np.ndarray) -> np.ndarray:
    """The indices of the images at these places of a permutation of the part, a function of (seed, key) alone."""
    if not is_in_windows(part):
        return _permutation(len(part), seed, key)[places]
    windows = _windows(part, seed, key)
    numbers = windows.of(places)
    indices = np.empty_like(places)
    for number in np.unique(numbers).tolist():
        own = numbers == number
        indices[own] = _window_order(part, seed, key, number)[places[own] - windows.starts[number]]
    return indices


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, key: tuple[int, ...]) -> np.ndarray:
    return _shared(keyed_rng(seed, *key).permutation(count))


@lru_cache(maxsize=4)
def _windows(part: ImageSubset, seed: int, key: tuple[int, ...]) -> _Windows:
    shards = keyed_rng(seed, *key).permutation(len(part.bounds) - 1)
    windows = np.array_split(shards, math.ceil(len(shards) / WINDOW))
    sizes = np.diff(part.bounds)
    return _Windows(windows, np.cumsum([0, *(sizes[window].sum() for window in windows)]))


@lru_cache(maxsize=4)
def _window_order(part: ImageSubset, seed: int, key: tuple[int, ...], number: int) -> np.ndarray:
    shards = _windows(part, seed, key).shards[number]
    indices = [np.arange(part.bounds[shard], part.bounds[shard + 1]) for shard in shards]
    return _shared(keyed_rng(seed, *key, number).permutation(np.concatenate(indices)))


def _shared(order: np.ndarray) -> np.ndarray:
    order.flags.writeable = False  # all callers get the same array
    return order


def prefetch_window(
    part: ImageSubset, seed: int, key: tuple[int, ...], places: np.ndarray, then: tuple[int, ...] | None = None
) -> None:
    """Begins to bring shards of the next window, as many as these places are further in the present one.

    Half-way through a window all of the next are under way. That of the last is the first of the order `then`.
    """
    if not is_in_windows(part):
        return
    windows = _windows(part, seed, key)
    number = int(windows.of(places[-1:])[0])
    start, end = windows.starts[number : number + 2]
    if number + 1 < len(windows.shards):
        following = windows.shards[number + 1]
    elif then is not None:
        following = _windows(part, seed, then).shards[0]
    else:
        return
    first, last = (2 * len(following) * (np.array([max(places[0], start), places[-1] + 1]) - start)) // (end - start)
    part.prefetch(part.bounds[following[first:last]])
