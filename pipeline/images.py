"""Images as memory-mapped arrays, and the batches that training and evaluation draw from them.

Dimensions: N images, B images of a batch, S image side in pixels; every image has 3 channels.

A data set is decoded once, to `<cache>/<name>-<S>-<fingerprint>/`, and mapped from there ever after. What a
training batch holds is a function of (seed, step) alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.image_sets import ImageSource, Pictures, find_image_set, list_datasets, resized

__all__ = [
    "Augmentation",
    "Images",
    "LabelledImages",
    "evaluation_batches",
    "few_shot",
    "list_datasets",
    "load_images",
    "training_batch",
]

log = logging.getLogger(__name__)

FORMAT = 1  # part of the fingerprint: raise it whenever the same files would be decoded to other pixels
SPLIT_SEED = 20211  # not the user's: two runs that differ in seed are tested on the same images
EVALUATION_SEED = 20212
CHUNK = 16  # images that a thread decodes at a time

# What random numbers are for. The purpose is part of the key, so that no two uses share a stream.
ORDER, SHIFT, FLIP, SHOTS = range(4)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One part of a data set: `pixels` uint8 (N, 3, S, S), mapped from a file; `labels` int64 (N,)."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Images:
    """A data set. `mean` and `std` are those of the three channels of the train part, on a scale of 0..1.

    `fingerprint` (hexadecimal digits) changes with the files, the image size and the test fraction.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: LabelledImages
    test: LabelledImages


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
    The first call decodes into `cache`, also when several processes call at once; a damaged cache is rebuilt.
    Raises UserError if the data set or a setting is impossible, or an image cannot be read.
    """
    if image_size < 1:
        raise UserError(f"image_size = {image_size}: must be at least 1 pixel")
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction = {test_fraction}: must be above 0 and below 1")
    cache = Path(cache).expanduser()
    source = find_image_set(dataset, folder, downloads=cache / "downloads")
    key = [FORMAT, source.name, source.listing, image_size]
    if not source.has_test:
        key += [test_fraction, SPLIT_SEED]
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    stored = cache / f"{source.name}-{image_size}-{fingerprint}"
    if _fault(stored) is None:
        return _open(stored)

    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"image cache {cache} cannot be made: {error.strerror}") from error
    with FileLock(f"{stored}.lock"):  # the first process decodes, the others wait and find its result
        fault = _fault(stored)
        if fault is not None:
            if stored.exists():
                log.warning("image cache %s is damaged (%s): decoding again", stored, fault)
                shutil.rmtree(stored)
            _store(source, stored, image_size, test_fraction)
    return _open(stored)


def training_batch(
    images: Images, seed: int, step: int, batch_size: int, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """The normalised images float32 (B, 3, S, S) and labels int64 (B,) of a training step.

    What is drawn is a function of (seed, step) alone. Each epoch is a permutation of the train part; a batch
    that crosses the end of an epoch goes on in the next one.
    Raises UserError if the shift would move an image out of sight.
    """
    count, side = len(images.train), images.train.pixels.shape[-1]
    if augmentation.shift >= side:
        raise UserError(f"augmentation shift = {augmentation.shift}: must be less than the image size, {side} pixels")
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    indices = np.concatenate(
        [_epoch_order(count, seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
    )
    x_BCSS, labels_B = _normalised(images.train, indices, images)
    if augmentation.shift:
        x_BCSS = _shifted(x_BCSS, augmentation.shift, _random(seed, SHIFT, step))
    if augmentation.flip:
        mirrored = _random(seed, FLIP, step).random(batch_size) < 0.5
        x_BCSS[mirrored] = x_BCSS[mirrored, :, :, ::-1]
    return torch.from_numpy(x_BCSS), torch.from_numpy(labels_B)


def evaluation_batches(part: LabelledImages, images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields each image of `part` once, normalised as in training: float32 (B, 3, S, S) and int64 (B,).

    The target networks normalise with the statistics of the batch. So the order is shuffled (in one fixed
    way), lest a batch be all of one class, and the batches differ in size by at most one image, lest the last
    be tiny. No batch is a single image, even where that takes one image more than `batch_size`.
    """
    count = len(part)
    batches = max(1, min(math.ceil(count / batch_size), count // 2))
    order = _random(EVALUATION_SEED, ORDER).permutation(count)
    for indices in np.array_split(order, batches):
        x_BCSS, labels_B = _normalised(part, indices, images)
        yield torch.from_numpy(x_BCSS), torch.from_numpy(labels_B)


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


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    order = _random(seed, ORDER, epoch).permutation(count)
    order.flags.writeable = False  # it is shared by all callers
    return order


def _normalised(part: LabelledImages, indices: np.ndarray, images: Images) -> tuple[np.ndarray, np.ndarray]:
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (images.mean, images.std))
    x_BCSS = part.pixels[indices].astype(np.float32)
    x_BCSS /= 255
    x_BCSS -= mean
    x_BCSS /= std
    return x_BCSS, part.labels[indices]


def _shifted(x_BCSS: np.ndarray, shift: int, random: np.random.Generator) -> np.ndarray:
    """Pads with 0, the mean of normalised images, and cuts a random window out of each image."""
    batch, _, side, _ = x_BCSS.shape
    padded = np.pad(x_BCSS, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
    top, left = random.integers(0, 2 * shift + 1, size=(2, batch))
    return windows[np.arange(batch), :, top, left]


def _by_class(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for label in np.unique(labels):
        yield int(label), np.flatnonzero(labels == label)


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


def _fault(stored: Path) -> str | None:
    """What is wrong with a decoded data set, None if nothing is."""
    try:
        sizes = json.loads((stored / "meta.json").read_text())["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"meta.json: {error!r}"
    for name, size in sizes.items():
        if not (stored / name).is_file():
            return f"{name} is missing"
        if (stored / name).stat().st_size != size:
            return f"{name} has {(stored / name).stat().st_size} bytes, not {size}"
    return None


def _open(stored: Path) -> Images:
    meta = json.loads((stored / "meta.json").read_text())
    parts = {
        part: LabelledImages(
            pixels=np.load(stored / f"{part}.npy", mmap_mode="r"),
            labels=np.load(stored / f"{part}_labels.npy"),
        )
        for part in ("train", "test")
    }
    return Images(
        name=meta["name"],
        fingerprint=stored.name.rpartition("-")[2],
        classes=tuple(meta["classes"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        **parts,
    )


def _store(source: ImageSource, stored: Path, image_size: int, test_fraction: float) -> None:
    """Decodes a data set to a temporary folder, which gets its name when it is complete."""
    images = source.read()
    train, test = images.train, images.test
    if test is None:
        train, test = _split(source, train, images.classes, test_fraction)
    needed = (len(train) + len(test)) * 3 * image_size**2
    free = shutil.disk_usage(stored.parent).free
    if needed > free:  # a full disk would kill the process when it writes to the mapped file
        raise UserError(f"image cache {stored.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    # The lock leaves one writer a host; hosts that share a disk without working locks do not meet either.
    partial = stored.with_name(f"{stored.name}.partial-{socket.gethostname()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        sums = _decode_part(partial / "train.npy", train, image_size, f"{source.name}, train")
        _decode_part(partial / "test.npy", test, image_size, f"{source.name}, test")
        np.save(partial / "train_labels.npy", train.labels)
        np.save(partial / "test_labels.npy", test.labels)
        mean, mean_of_squares = sums / (len(train) * image_size**2 * np.array([[255], [255**2]]))
        # A channel that never varies has no deviation to divide by; one step of uint8 stands in for it.
        std = np.sqrt((mean_of_squares - mean**2).clip(min=1 / 255**2))
        meta = {
            "name": source.name,
            "classes": images.classes,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "bytes": {path.name: path.stat().st_size for path in sorted(partial.iterdir())},
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=1))
        _publish(partial, stored)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("decoded %s: %d + %d images (train, test), in %s", source.name, len(train), len(test), stored)


def _publish(partial: Path, stored: Path) -> None:
    try:
        partial.rename(stored)
    except OSError:
        if _fault(stored) is not None:
            raise  # else another host was faster, with the same content


def _decode_part(path: Path, pictures: Pictures, image_size: int, title: str) -> np.ndarray:
    """Writes pixels uint8 (N, 3, S, S); returns the channels' sums and sums of squares, float64 (2, 3)."""
    count = len(pictures)
    shape = (count, 3, image_size, image_size)
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

    def decode(start: int) -> tuple[int, np.ndarray]:
        chunk = np.stack([resized(image, image_size) for image in pictures.images[start : start + CHUNK]])
        pixels[start : start + CHUNK] = chunk
        squares = np.square(chunk, dtype=np.uint32)
        sums = [values.sum(axis=(0, 2, 3), dtype=np.int64) for values in (chunk, squares)]
        return len(chunk), np.stack(sums)

    total = np.zeros((2, 3), dtype=np.int64)  # integers: the result does not depend on the order
    every = 0.1 if sys.stderr.isatty() else 30  # seconds
    with (
        tqdm(total=count, unit=" images", desc=f"decoding {title}", delay=1, mininterval=every) as bar,
        ThreadPoolExecutor() as pool,  # Pillow decodes and resizes without the interpreter's lock
    ):
        for done, sums in pool.map(decode, range(0, count, CHUNK)):
            total += sums
            bar.update(done)
    pixels.flush()
    return total.astype(np.float64)
