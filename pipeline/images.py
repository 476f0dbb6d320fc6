"""Images of a data set, decoded once, and the batches that training and evaluation draw from them.

Dimensions: N images, B images of a batch, S image side in pixels; every image has 3 channels.

A data set is decoded once, in shards, to `<storage>/images/<name>-<S>-<fingerprint>/`, and mapped from there ever
after (see `pipeline.image_shards`). What a training batch holds is a function of (seed, step) alone.

Large sets have more shards than a node should need at a time. So their images lie in the shards in a random order,
always the same, and an epoch goes through shuffled shards in windows: it draws from `WINDOW` of them in random order
while those of the next window are brought.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from pipeline.errors import UserError
from pipeline.image_sets import ImageSource, Pictures, find_image_set, list_datasets
from pipeline.image_shards import (
    WINDOW,
    LabelledImages,
    PixelShards,
    Shard,
    decode_shards,
    images_per_shard,
    is_small,
    node_cache,
)
from pipeline.params import fingerprint
from pipeline.storage import file_sizes, is_in_bucket, read_bytes, write_bytes

__all__ = [
    "Augmentation",
    "Images",
    "LabelledImages",
    "evaluation_batches",
    "few_shot",
    "hold_out",
    "list_datasets",
    "load_images",
    "open_images",
    "training_batch",
]

log = logging.getLogger(__name__)

FORMAT = 2  # part of the fingerprint: raise it whenever the same files would be decoded to other pixels, or other files
# Not the user's: two runs that differ in seed are tested, and choose checkpoints, on the same images.
SPLIT_SEED = 20211
EVALUATION_SEED = 20212
HOLD_OUT_SEED = 20213
SCATTER_SEED = 20214
BLOCK = 2**18  # values that are normalised at a time: they stay in the cache of a core

# What random numbers are for. The purpose is part of the key, so that no two uses share a stream.
ORDER, SHIFT, FLIP, SHOTS = range(4)


@dataclass(frozen=True, eq=False)
class Images:
    """A data set. `mean` and `std` are those of the three channels of the train part, on a scale of 0..1.

    `place` is where its decoded shards lie, if it has any; `fingerprint` (hexadecimal digits) changes with the files,
    the image size and the test fraction.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: LabelledImages
    test: LabelledImages
    place: str = ""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Each image is moved by up to `shift` pixels along both axes (what that uncovers gets the mean colour) and,
    with `flip`, mirrored with probability 1/2.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise UserError(f"augmentation shift = {self.shift}: must be at least 0 pixels")


def load_images(
    dataset: str, image_size: int, cache: str | Path, *, folder: str | None = None, test_fraction: float = 0.2
) -> Images:
    """The images of a data set, `image_size` pixels wide and high.

    `dataset` is a name of `list_datasets()` or the path of a folder of class folders; `folder` holds the
    files of sets that are in no package. Gray images get three equal channels; photos are cut to their
    central square. A set without a test part gives up `test_fraction` of each class, always the same images.
    The first call decodes into `cache`, a folder or an address in a bucket (`pipeline.results.image_cache`), also when
    several processes call at once; files are decoded on the whole cluster if this process is connected to Ray. What an
    interrupted call has decoded is kept, and what is missing or cut off is decoded again.
    Raises UserError if the data set or a setting is impossible, or an image cannot be read.
    """
    if image_size < 1:
        raise UserError(f"image_size = {image_size}: must be at least 1 pixel")
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction = {test_fraction}: must be above 0 and below 1")
    place = str(cache).rstrip("/") if is_in_bucket(cache) else os.path.abspath(Path(cache).expanduser())
    here = node_cache(place)
    source = find_image_set(dataset, folder, downloads=here / "downloads")
    key = [FORMAT, source.name, source.listing, image_size, images_per_shard(image_size), WINDOW]
    if not source.has_test:
        key += [test_fraction, SPLIT_SEED]
    name = f"{source.name}-{image_size}-{fingerprint(key)}"
    stored = f"{place}/{name}"
    with suppress(_Incomplete):
        return open_images(stored)

    try:
        here.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"image cache {here} cannot be made: {error.strerror}") from error
    with FileLock(here / f"{name}.lock"):  # the first process decodes, the others wait and find its result
        try:
            return open_images(stored)
        except _Incomplete as fault:
            if file_sizes(stored):
                log.warning("%s: decoding what is missing", fault)
            _store(source, stored, image_size, test_fraction)
    return open_images(stored)


def hold_out(images: Images, fraction: float) -> tuple[Images, LabelledImages]:
    """The data set without a `fraction` of the train part, and that fraction: images to choose checkpoints on.

    Of each class the fraction is taken, rounded, and at least one image, but never the last one. These are always the
    same images. Nothing is copied; `mean` and `std` stay those of the whole train part.
    Raises UserError if the fraction is impossible.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"fraction of images to hold out = {fraction}: must be at least 0 and below 1")
    train = images.train
    held_out = np.zeros(len(train), dtype=bool)
    for label, indices in _by_class(train.labels) if fraction else ():
        count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        # Images of a large set are scattered over its shards already; its last ones lie in few shards together.
        shuffled = indices if _in_windows(train) else _random(HOLD_OUT_SEED, label).permutation(indices)
        held_out[shuffled[len(indices) - count :]] = True
    rest = train.only(np.flatnonzero(~held_out)) if held_out.any() else train
    return replace(images, train=rest), train.only(np.flatnonzero(held_out))


def training_batch(
    images: Images, seed: int, step: int, batch_size: int, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """The normalised images float32 (B, 3, S, S) and labels int64 (B,) of a training step.

    What is drawn is a function of (seed, step) alone. Each epoch is a permutation of the train part; a batch
    that crosses the end of an epoch goes on in the next one.
    Raises UserError if the shift would move an image out of sight.
    """
    part, shift = images.train, augmentation.shift
    if shift >= part.side:
        raise UserError(f"augmentation shift = {shift}: must be less than the image size, {part.side} pixels")
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), len(part))
    drawn = [(int(epoch), places[epochs == epoch]) for epoch in np.unique(epochs)]
    indices = np.concatenate([_drawn(part, seed, (ORDER, epoch), own) for epoch, own in drawn])
    pixels_BCSS = part.take(indices)
    epoch, own = drawn[-1]
    _prefetch(part, seed, (ORDER, epoch), own, then=(ORDER, epoch + 1))

    mirrored_B = _random(seed, FLIP, step).random(batch_size) < 0.5 if augmentation.flip else None
    offsets_2B = None
    if shift:
        offsets_2B = _random(seed, SHIFT, step).integers(0, 2 * shift + 1, size=(2, batch_size))
        pixels_BCSS = _shifted(pixels_BCSS, shift, offsets_2B)
    if mirrored_B is not None:
        pixels_BCSS[mirrored_B] = pixels_BCSS[mirrored_B, :, :, ::-1]
    x_BCSS = _normalised(pixels_BCSS, images)
    if offsets_2B is not None:
        _clear_uncovered(x_BCSS, shift, offsets_2B, mirrored_B)
    return torch.from_numpy(x_BCSS), torch.from_numpy(part.labels[indices])


def evaluation_batches(part: LabelledImages, images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields each image of `part` once, normalised as in training: float32 (B, 3, S, S) and int64 (B,).

    The target networks normalise with the statistics of the batch. So the order is shuffled (in one fixed
    way), lest a batch be all of one class, and the batches differ in size by at most one image, lest the last
    be tiny. No batch is a single image, even where that takes one image more than `batch_size`. A part without images
    has no batch.
    """
    count = len(part)
    batches = max(1, min(math.ceil(count / batch_size), count // 2))
    for places in np.array_split(np.arange(count), batches) if count else ():
        indices = _drawn(part, EVALUATION_SEED, (ORDER,), places)
        pixels_BCSS = part.take(indices)
        _prefetch(part, EVALUATION_SEED, (ORDER,), places)
        yield torch.from_numpy(_normalised(pixels_BCSS, images)), torch.from_numpy(part.labels[indices])


def few_shot(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Sorted positions in `labels` (N,), exactly `per_class` of each class that occurs in it.

    With the same seed a smaller choice is part of a larger one: curves over `per_class` are comparable.
    Raises UserError if a class has too few images.
    """
    if per_class < 1:
        raise UserError(f"per_class = {per_class}: must be at least 1 image")
    chosen = []
    for label, positions in _by_class(labels):
        if len(positions) < per_class:
            raise UserError(f"per_class = {per_class}: class {label} has only {len(positions)} images")
        chosen.append(_random(seed, SHOTS, label).permutation(positions)[:per_class])
    return np.sort(np.concatenate(chosen))


def _random(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _by_class(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
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


def _in_windows(part: LabelledImages) -> bool:
    return len(part.bounds) - 1 > WINDOW


def _drawn(part: LabelledImages, seed: int, key: tuple[int, ...], places: np.ndarray) -> np.ndarray:
    """The indices of the images at these places of a permutation of the part, a function of (seed, key) alone."""
    if not _in_windows(part):
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
    return _shared(_random(seed, *key).permutation(count))


@lru_cache(maxsize=4)
def _windows(part: LabelledImages, seed: int, key: tuple[int, ...]) -> _Windows:
    shards = _random(seed, *key).permutation(len(part.bounds) - 1)
    windows = np.array_split(shards, math.ceil(len(shards) / WINDOW))
    sizes = np.diff(part.bounds)
    return _Windows(windows, np.cumsum([0, *(sizes[window].sum() for window in windows)]))


@lru_cache(maxsize=4)
def _window_order(part: LabelledImages, seed: int, key: tuple[int, ...], number: int) -> np.ndarray:
    shards = _windows(part, seed, key).shards[number]
    indices = [np.arange(part.bounds[shard], part.bounds[shard + 1]) for shard in shards]
    return _shared(_random(seed, *key, number).permutation(np.concatenate(indices)))


def _shared(order: np.ndarray) -> np.ndarray:
    order.flags.writeable = False  # all callers get the same array
    return order


def _prefetch(
    part: LabelledImages, seed: int, key: tuple[int, ...], places: np.ndarray, then: tuple[int, ...] | None = None
) -> None:
    """Begins to bring shards of the next window, as many as these places are further in the present one.

    Half-way through a window all of the next are under way. That of the last is the first of the order `then`.
    """
    if not _in_windows(part):
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


# Pixels


def _normalised(pixels_BCSS: np.ndarray, images: Images) -> np.ndarray:
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (images.mean, images.std))
    x_BCSS = np.empty(pixels_BCSS.shape, dtype=np.float32)
    size = max(1, BLOCK // math.prod(pixels_BCSS.shape[1:]))
    for start in range(0, len(x_BCSS), size):
        block = x_BCSS[start : start + size]
        np.divide(pixels_BCSS[start : start + size], np.float32(255), out=block, dtype=np.float32)
        block -= mean
        block /= std
    return x_BCSS


def _shifted(pixels_BCSS: np.ndarray, shift: int, offsets_2B: np.ndarray) -> np.ndarray:
    """Cuts a window out of each image with a margin of `shift` around it, `offsets` (top, left) into that."""
    batch, channels, side, _ = pixels_BCSS.shape
    padded = np.zeros((batch, channels, side + 2 * shift, side + 2 * shift), dtype=np.uint8)
    padded[:, :, shift:-shift, shift:-shift] = pixels_BCSS
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
    return windows[np.arange(batch), :, *offsets_2B]


def _clear_uncovered(x_BCSS: np.ndarray, shift: int, offsets_2B: np.ndarray, mirrored_B: np.ndarray | None) -> None:
    """Sets what a shift has uncovered to 0, the mean of normalised images; a byte cannot say that."""
    side = x_BCSS.shape[-1]
    top_B, left_B = offsets_2B
    if mirrored_B is not None:
        left_B = np.where(mirrored_B, 2 * shift - left_B, left_B)
    for strip in (slice(0, shift), slice(side - shift, side)):  # nothing else can be uncovered
        along = np.arange(side)[strip]
        for view, offset_B in ((x_BCSS[:, :, strip], top_B), (x_BCSS.swapaxes(2, 3)[:, :, strip], left_B)):
            place_BL = along + offset_B[:, None]
            uncovered_BL = (place_BL < shift) | (place_BL >= shift + side)
            np.copyto(view, 0, where=uncovered_BL[:, None, :, None])


# The stored set


class _Incomplete(UserError):
    """A decoded set is not there, or not all of it."""

    def __init__(self, stored: str, fault: str):
        super().__init__(f"image cache {stored} is incomplete: {fault}")


def open_images(stored: str) -> Images:
    """The set that was decoded at a place (`Images.place`), whose source files may be out of reach from here.

    Raises UserError if it is incomplete; shards of large parts are compared only when they are read.
    """
    try:
        meta = json.loads(read_bytes(f"{stored}/meta.json"))
        if meta.pop("checksum") != fingerprint(meta):
            raise _Incomplete(stored, "meta.json is damaged")
        sizes = file_sizes(stored)
        parts = {part: _open_part(stored, sizes, **meta["parts"][part]) for part in ("train", "test")}
        return Images(
            name=meta["name"],
            fingerprint=stored.rpartition("-")[2],
            classes=tuple(meta["classes"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            **parts,
            place=stored,
        )
    except FileNotFoundError as error:
        raise _Incomplete(stored, f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Incomplete(stored, f"meta.json: {error!r}") from error


def _open_part(
    stored: str, sizes: dict[str, int], side: int, shards: list[dict[str, Any]], labels: dict[str, str]
) -> LabelledImages:
    pixels = PixelShards(stored, side, [Shard(**shard) for shard in shards])
    for shard in pixels.shards:
        if shard.file not in sizes:
            raise _Incomplete(stored, f"{shard.file} is missing")
        if sizes[shard.file] != shard.bytes:
            raise _Incomplete(stored, f"{shard.file} has {sizes[shard.file]} bytes, not {shard.bytes}")
    if is_small(stored, len(shards)):
        try:
            pixels.compare()
        except UserError as error:
            raise _Incomplete(stored, str(error).partition("\n")[0]) from error
    content = read_bytes(f"{stored}/{labels['file']}")
    if hashlib.sha256(content).hexdigest() != labels["sha256"]:
        raise _Incomplete(stored, f"{labels['file']} is damaged")
    return LabelledImages(pixels, np.load(io.BytesIO(content)))


def _store(source: ImageSource, stored: str, image_size: int, test_fraction: float) -> None:
    """Decodes what is missing of a data set, and says so in `meta.json` when all is there."""
    images = source.read()
    train, test = images.train, images.test
    if test is None:
        train, test = _split(source, train, images.classes, test_fraction)
    pictures = {"train": _scattered(train, image_size), "test": _scattered(test, image_size)}
    shards = decode_shards(stored, pictures, image_size, source.name)
    parts = {
        part: {
            "side": image_size,
            "shards": [asdict(shard) for shard in shards[part]],
            "labels": _store_labels(stored, f"{part}_labels.npy", pictures[part].labels),
        }
        for part in pictures
    }
    mean, std = _statistics(shards["train"], image_size)
    meta = {"name": source.name, "classes": images.classes, "mean": mean, "std": std, "parts": parts}
    write_bytes(f"{stored}/meta.json", json.dumps(meta | {"checksum": fingerprint(meta)}, indent=1).encode())
    log.info("decoded %s: %d + %d images (train, test), in %s", source.name, len(train), len(test), stored)


def _store_labels(stored: str, file: str, labels: np.ndarray) -> dict[str, str]:
    buffer = io.BytesIO()
    np.save(buffer, labels)
    content = buffer.getvalue()
    write_bytes(f"{stored}/{file}", content)
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest()}


def _statistics(shards: Sequence[Shard], image_size: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of the channels, on a scale of 0..1."""
    sums = np.array([[shard.sums, shard.squares] for shard in shards]).sum(axis=0).astype(np.float64)
    count = sum(shard.images for shard in shards) * image_size**2
    mean, mean_of_squares = sums / (count * np.array([[255], [255**2]]))
    # A channel that never varies has no deviation to divide by; one step of uint8 stands in for it.
    return mean.tolist(), np.sqrt((mean_of_squares - mean**2).clip(min=1 / 255**2)).tolist()


def _scattered(pictures: Pictures, image_size: int) -> Pictures:
    """In a random order, always the same, if they are drawn in windows: files come class by class."""
    if len(pictures) <= WINDOW * images_per_shard(image_size):
        return pictures
    return pictures.take(_random(SCATTER_SEED).permutation(len(pictures)))


def _split(
    source: ImageSource, pictures: Pictures, classes: tuple[str, ...], fraction: float
) -> tuple[Pictures, Pictures]:
    """The train and the test part; each class is split on its own and has an image in both."""
    chosen = []
    for label, positions in _by_class(pictures.labels):
        if len(positions) < 2:
            raise UserError(
                f"class {classes[label]} of {source.name} has one image: needed are at least 2, one to test"
            )
        count = min(max(round(fraction * len(positions)), 1), len(positions) - 1)
        chosen.append(_random(SPLIT_SEED, label).permutation(positions)[:count])
    in_test = np.zeros(len(pictures), dtype=bool)
    in_test[np.concatenate(chosen)] = True
    return pictures.take(np.flatnonzero(~in_test)), pictures.take(np.flatnonzero(in_test))
