"""A decoded data set, and subsets of its images.

A data set of text is one too: its images are windows of tokens (see `pipeline.images.texts`), its classes are the
vocabulary.

Dimensions: N images of a part, M images of its source, B images of a batch, K shards, S image side in pixels, T tokens
of a text. Every image has 3 channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.images.shards import PixelShards


@dataclass(frozen=True, eq=False)
class Images:
    """A data set.

    Attributes:
        name: of the data set, or of its folder.
        settings_hash: hexadecimal digits that change with the files, the image size and the test fraction.
        classes: names by label.
        mean, std: mean and standard deviation of the three channels of the train part, on a scale of 0..1.
        place: folder of its decoded shards; empty for images in memory.
        bytes_per_token: of text, the bytes that a token stands for in the mean.
    """

    name: str
    settings_hash: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: ImageSubset
    test: ImageSubset
    place: str = ""
    bytes_per_token: float = 1.0


@dataclass(frozen=True, eq=False)
class ImageSubset:
    """A part of a data set, or some images of a part.

    Attributes:
        source: pixels uint8 (M, 3, S, S), as an array or in shards; windows of text (M, T + 1), unsigned integers.
        labels: int64 (N,); zeros for text.
        positions: increasing positions (N,) of the images in `source`; None if it has exactly these images.
    """

    source: np.ndarray | PixelShards
    labels: np.ndarray
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_text(self) -> bool:
        """Whether these are windows of text."""
        return len(self.source.shape) == 2

    @property
    def side(self) -> int:
        """The side S of the images, in pixels; of texts, the tokens T that a network reads."""
        return self.source.shape[-1] - self.is_text

    @property
    def pixels(self) -> np.ndarray:
        """All images in memory, as `source` has them, for small parts; not a copy if the source is an array."""
        if self.positions is None and isinstance(self.source, np.ndarray):
            return self.source
        return self.take(np.arange(len(self)))

    def take(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return a copy of the images at these indices (B,), in this order: uint8 (B, 3, S, S), of text (B, T + 1)."""
        return self.source[self._positions(indices)]

    def prefetch(self, indices: np.ndarray) -> None:
        """Start to fetch the shards of the images at these indices (B,); `take` waits for those that it needs."""
        if isinstance(self.source, PixelShards):
            self.source.prefetch(self._positions(indices))

    def only(self, indices: np.ndarray) -> ImageSubset:
        """Return the subset of the images at these increasing indices; only labels are copied."""
        return ImageSubset(self.source, self.labels[indices], self._positions(indices))

    @cached_property
    def bounds(self) -> np.ndarray:
        """The index (K + 1,) of the first image of each shard that has images of this subset, and N."""
        if not isinstance(self.source, PixelShards):
            return np.array([0, len(self)])
        if self.positions is None:
            return self.source.bounds
        return np.unique(np.searchsorted(self.positions, self.source.bounds))

    def _positions(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        return indices if self.positions is None else self.positions[indices]
