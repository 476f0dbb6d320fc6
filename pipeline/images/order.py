"""The order of images in an epoch: a function of a seed and a key alone.

A node should not need all shards of a large data set at the same time. So an epoch goes through the shards in shuffled
windows: it takes the images of `WINDOW` shards in random order, while the shards of the next window are fetched. The
images of a large data set are shuffled once before they are put in shards, so that a window has images of all classes.

Dimensions: N images of a part, B images of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.images.dataset import ImageSubset
from pipeline.images.shards import WINDOW

# Purposes of random numbers. The purpose is part of the key, so that no two uses share a stream.
ORDER, SHIFT, FLIP, SHOTS, TESTED = range(5)


def keyed_rng(seed: int, *key: int) -> np.random.Generator:
    """Return the random numbers of a seed and a key; different keys give independent streams."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def positions_by_class(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each label that occurs, and its increasing positions in `labels` (N,)."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    yield from zip(classes.tolist(), np.split(order, starts[1:]), strict=False)  # one label less than parts if N is 0


# The order of the images


@dataclass(frozen=True, eq=False)
class _Windows:
    """The order of an epoch.

    Attributes:
        shards: numbers of the shards of each window.
        starts: first place of each window in the epoch, and N.
    """

    shards: list[np.ndarray]
    starts: np.ndarray

    def of(self, places: np.ndarray) -> np.ndarray:
        """Return the number of the window of each place."""
        return np.searchsorted(self.starts, places, side="right") - 1


def is_in_windows(part: ImageSubset) -> bool:
    """Return whether a part is so large that an epoch goes through it in windows."""
    return len(part.bounds) - 1 > WINDOW


def ordered_indices(part: ImageSubset, seed: int, key: tuple[int, ...], places: np.ndarray) -> np.ndarray:
    """Return the indices (B,) at these places (B,) of a permutation of the part, a function of (seed, key) alone."""
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
    return _read_only(keyed_rng(seed, *key).permutation(count))


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
    return _read_only(keyed_rng(seed, *key, number).permutation(np.concatenate(indices)))


def _read_only(order: np.ndarray) -> np.ndarray:
    """Return the array, which no caller can change, because the cache gives all callers the same one."""
    order.flags.writeable = False
    return order


def prefetch_window(
    part: ImageSubset, seed: int, key: tuple[int, ...], places: np.ndarray, then: tuple[int, ...] | None = None
) -> None:
    """Start to fetch shards of the next window while the images at these places (B,) are used.

    The share of shards is twice the share of the window that the places are, so that halfway through a window all
    shards of the next one are on their way.

    Args:
        then: key of the order that follows the last window; None if nothing follows.
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
