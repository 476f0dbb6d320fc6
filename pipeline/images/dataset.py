"""A decoded data set, and subsets of its images.

Dimensions: N images, B images of a batch, S image side in pixels; every image has 3 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.images.shards import PixelShards


@dataclass(frozen=True, eq=False)
class Images:
    """A data set. `mean` and `std` are those of the three channels of the train part, on a scale of 0..1.

    `place` is where its decoded shards lie, if it has any; `settings_hash` (hexadecimal digits) changes with the files,
    the image size and the test fraction.
    """

    name: str
    settings_hash: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: ImageSubset
    test: ImageSubset
    place: str = ""


@dataclass(frozen=True, eq=False)
class ImageSubset:
    """One part of a data set, or some images of one: `labels` int64 (N,), and where the pixels are.

    `source` is an array uint8 (M, 3, S, S), or shards of one. Of its images the part has those at `positions` (N,),
    which increase; all where that is None.
    """

    source: np.ndarray | PixelShards
    labels: np.ndarray
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """S, in pixels."""
        return self.source.shape[-1]

    @property
    def pixels(self) -> np.ndarray:
        """All images, uint8 (N, 3, S, S), in memory: for small parts. No copy where they are an array already."""
        if self.positions is None and isinstance(self.source, np.ndarray):
            return self.source
        return self.take(np.arange(len(self)))

    def take(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """A copy of the images at these indices (B,), in this order: uint8 (B, 3, S, S)."""
        return self.source[self._positions(indices)]

    def prefetch(self, indices: np.ndarray) -> None:
        """Begins to bring the shards in which the images at these indices are; `take` waits for what it needs."""
        if isinstance(self.source, PixelShards):
            self.source.prefetch(self._positions(indices))

    def only(self, indices: np.ndarray) -> ImageSubset:
        """The part with the images at these indices alone, which increase; nothing is copied but labels."""
        return ImageSubset(self.source, self.labels[indices], self._positions(indices))

    @cached_property
    def bounds(self) -> np.ndarray:
        """The indices (K + 1,) where the K shards begin of which the part has images, and N."""
        if not isinstance(self.source, PixelShards):
            return np.array([0, len(self)])
        if self.positions is None:
            return self.source.bounds
        return np.unique(np.searchsorted(self.positions, self.source.bounds))

    def _positions(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        return indices if self.positions is None else self.positions[indices]
