"""Batches of normalised images, for training and for evaluation.

Dimensions: B images or texts of a batch, C channels (always 3), S image side in pixels, L pixels along the side of a
strip, 2 axes (vertical, horizontal), T tokens of a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.order import FLIP, ORDER, SHIFT, keyed_rng, ordered_indices, prefetch_window

EVALUATION_SEED = 20212
"""Seed of the order of images in evaluations, which is the same in all runs."""

NORMALISED_AT_ONCE = 2**18
"""Number of values that are normalised at a time, so that they stay in the cache of a core."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        shift: pixels that an image is moved by, at most, along each axis. Uncovered pixels get the mean colour.
        flip: whether images are mirrored left to right with probability 1/2.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise UserError(f"augmentation shift = {self.shift}: must be at least 0 pixels")


def training_batch(
    images: Images, seed: int, step: int, batch_size: int, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """Return the normalised images float32 (B, 3, S, S) and labels int64 (B,) of a training step.

    Of text they are tokens int64 (B, T) and the tokens that come next, which nothing augments.

    They are a function of (seed, step) alone. Each epoch is a permutation of the train part; a batch that crosses the
    end of an epoch takes its other images from the next one.

    Raises:
        UserError: the shift is as large as the images.
    """
    part, shift = images.train, augmentation.shift
    if shift >= part.side and not part.is_text:
        raise UserError(f"augmentation shift = {shift}: must be less than the image size, {part.side} pixels")
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), len(part))
    places_of = {int(epoch): places[epochs == epoch] for epoch in np.unique(epochs)}
    indices = np.concatenate([ordered_indices(part, seed, (ORDER, epoch), own) for epoch, own in places_of.items()])
    pixels_BCSS = part.take(indices)
    if part.is_text:
        return tokens_of(pixels_BCSS)
    last = max(places_of)
    prefetch_window(part, seed, (ORDER, last), places_of[last], then=(ORDER, last + 1))

    mirrored_B = keyed_rng(seed, FLIP, step).random(batch_size) < 0.5 if augmentation.flip else None
    offsets_2B = None
    if shift:
        offsets_2B = keyed_rng(seed, SHIFT, step).integers(0, 2 * shift + 1, size=(2, batch_size))
        pixels_BCSS = _shifted(pixels_BCSS, shift, offsets_2B)
    if mirrored_B is not None:
        pixels_BCSS[mirrored_B] = pixels_BCSS[mirrored_B, :, :, ::-1]
    x_BCSS = _normalised(pixels_BCSS, images)
    if offsets_2B is not None:
        _clear_uncovered(x_BCSS, shift, offsets_2B, mirrored_B)
    return torch.from_numpy(x_BCSS), torch.from_numpy(part.labels[indices])


def evaluation_batches(part: ImageSubset, images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each image of a part once, normalised as in training: float32 (B, 3, S, S) and labels int64 (B,).

    Of text these are tokens int64 (B, T) and the tokens that come next.

    Target networks normalise with the statistics of the batch. So the order is shuffled, the same way in all runs,
    because a batch should not have one class only. Batches differ in size by at most one image, because a small last
    batch would have poor statistics. No batch is a single image, even if one then has `batch_size` + 1 images. A part
    without images has no batch.
    """
    count = len(part)
    batches = max(1, min(math.ceil(count / batch_size), count // 2))
    for places in np.array_split(np.arange(count), batches) if count else ():
        indices = ordered_indices(part, EVALUATION_SEED, (ORDER,), places)
        pixels_BCSS = part.take(indices)
        prefetch_window(part, EVALUATION_SEED, (ORDER,), places)
        if part.is_text:
            yield tokens_of(pixels_BCSS)
            continue
        yield torch.from_numpy(_normalised(pixels_BCSS, images)), torch.from_numpy(part.labels[indices])


def tokens_of(windows_BT: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the tokens (B, T) that a network reads of windows (B, T + 1), and those that come next, int64."""
    tokens_BT = torch.from_numpy(windows_BT.astype(np.int64))
    return tokens_BT[:, :-1], tokens_BT[:, 1:]


def in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return images (B, C, S, S) with their values in an order in memory; texts as they are."""
    return x.to(memory_format=layout) if x.ndim == 4 else x


# Pixels


def _normalised(pixels_BCSS: np.ndarray, images: Images) -> np.ndarray:
    mean_C11, std_C11 = (np.array(values, dtype=np.float32)[:, None, None] for values in (images.mean, images.std))
    x_BCSS = np.empty(pixels_BCSS.shape, dtype=np.float32)
    images_at_once = max(1, NORMALISED_AT_ONCE // math.prod(pixels_BCSS.shape[1:]))
    for start in range(0, len(x_BCSS), images_at_once):
        chunk = x_BCSS[start : start + images_at_once]
        np.divide(pixels_BCSS[start : start + images_at_once], np.float32(255), out=chunk, dtype=np.float32)
        chunk -= mean_C11
        chunk /= std_C11
    return x_BCSS


def _shifted(pixels_BCSS: np.ndarray, shift: int, offsets_2B: np.ndarray) -> np.ndarray:
    """Return a window of each image after padding it by `shift`; offsets (top, left) say where the window begins."""
    batch, channels, side, _ = pixels_BCSS.shape
    padded = np.zeros((batch, channels, side + 2 * shift, side + 2 * shift), dtype=np.uint8)
    padded[:, :, shift:-shift, shift:-shift] = pixels_BCSS
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
    return windows[np.arange(batch), :, *offsets_2B]


def _clear_uncovered(x_BCSS: np.ndarray, shift: int, offsets_2B: np.ndarray, mirrored_B: np.ndarray | None) -> None:
    """Set uncovered pixels to 0, the mean of normalised images, because no byte stands for the mean."""
    side = x_BCSS.shape[-1]
    top_B, left_B = offsets_2B
    if mirrored_B is not None:
        left_B = np.where(mirrored_B, 2 * shift - left_B, left_B)
    for strip in (slice(0, shift), slice(side - shift, side)):  # only pixels at the borders can be uncovered
        along = np.arange(side)[strip]
        for view, offset_B in ((x_BCSS[:, :, strip], top_B), (x_BCSS.swapaxes(2, 3)[:, :, strip], left_B)):
            place_BL = along + offset_B[:, None]
            uncovered_BL = (place_BL < shift) | (place_BL >= shift + side)
            np.copyto(view, 0, where=uncovered_BL[:, None, :, None])
