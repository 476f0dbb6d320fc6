"""Loading of data sets: each is decoded once into shards in the storage, and opened from there afterwards.

A decoded data set has shards (see `pipeline.images.shards`), a file of labels for each part, and `meta.json`, which is
written last and names all of them with their checksums.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pipeline.errors import UserError
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.folders import MOST_PASSED_OVER
from pipeline.images.order import keyed_rng, positions_by_class
from pipeline.images.pixels import MAX_PIXELS
from pipeline.images.shards import (
    WINDOW,
    ImageShard,
    PixelShards,
    decode_shards,
    images_per_shard,
    is_small,
    node_cache,
)
from pipeline.images.sources import DATASETS, DatasetSource, RawImages, find_dataset, is_address
from pipeline.images.texts import DamagedText, TextSource, find_text, open_text, store_text, text_settings
from pipeline.params import TEXT_DATASETS, ImageSettings, settings_hash
from pipeline.storage.files import file_sizes, read_bytes, write_bytes
from pipeline.storage.paths import downloads_folder, image_cache, image_set_folder, is_in_bucket
from pipeline.storage.records import checksum_of
from pipeline.workspace import from_workspace

log = logging.getLogger(__name__)

DECODED_FORMAT = 2
"""Part of the settings hash. Raise it when the same source files would give other pixels or files in the cache."""

SPLIT_SEED = 20211
"""Seed of the choice of test images, so that all runs use the same ones."""

SHUFFLE_SEED = 20214
"""Seed of the order of images in the shards of a large data set."""


def load_images(dataset: str, settings: ImageSettings, storage: str) -> Images:
    """Return the images of a data set as the settings say, decoded into the storage at the first call.

    Raises:
        UserError: see `load_cached_images`.
    """
    dataset, folder = _places(dataset, settings)
    if dataset in TEXT_DATASETS:
        return _load_text(_find_text(dataset, folder, settings), settings, storage)
    return load_cached_images(
        dataset,
        settings.size,
        image_cache(storage),
        folder=folder,
        test_fraction=settings.test_fraction,
        most_passed_over=settings.passed_over,
        max_pixels=settings.max_pixels,
    )


def _find_text(dataset: str, folder: str | None, settings: ImageSettings) -> TextSource:
    tokenizer = None if settings.tokenizer is None else from_workspace(settings.tokenizer)
    return find_text(dataset, folder, settings.passed_over, tokenizer)


def _load_text(source: TextSource, settings: ImageSettings, storage: str) -> Images:
    """Return the text of a data set, read into the storage at the first call; a damaged copy is read again."""
    key = text_settings(source, settings.size, settings.test_fraction)
    cache = str(image_cache(storage))
    stored = image_set_folder(cache, source.name, settings.size, key)
    return _opened_or_stored(
        stored, node_cache(cache), lambda: store_text(source, stored, settings.size, settings.test_fraction)
    )


def find_images(dataset: str, settings: ImageSettings, storage: str) -> DatasetSource | TextSource:
    """Return where `load_images` would read a data set from, without decoding or downloading it.

    Raises:
        UserError: the data set is unknown, or its folder does not hold what it needs.
    """
    dataset, folder = _places(dataset, settings)
    if dataset in TEXT_DATASETS:
        return _find_text(dataset, folder, settings)
    downloads = downloads_folder(node_cache(image_cache(storage)))
    return find_dataset(dataset, folder, downloads, settings.passed_over)


def _places(dataset: str, settings: ImageSettings) -> tuple[str, str | None]:
    """Return the data set and its folder as the settings mean them: relative paths are meant from the workspace.

    A DVC experiment in a temporary copy of the repository has no files there that git does not know.
    """
    folder = settings.folder
    if folder is not None and not is_address(folder):
        folder = str(from_workspace(folder))
    if dataset and dataset not in (*DATASETS, *TEXT_DATASETS) and not is_address(dataset):
        path = from_workspace(dataset)
        dataset = str(path) if "/" in dataset or path.is_dir() else dataset
    return dataset, folder


def load_cached_images(
    dataset: str,
    image_size: int,
    cache: str | Path,
    *,
    folder: str | None = None,
    test_fraction: float = 0.2,
    most_passed_over: float = MOST_PASSED_OVER,
    max_pixels: int = MAX_PIXELS,
) -> Images:
    """Return the images of a data set, `image_size` pixels wide and high.

    Gray images get three equal channels. Photos are cut to their central square. A data set without a test part gives
    up `test_fraction` of each class, always the same images.

    The first call decodes into `cache`, also when several processes call at once. Image files are decoded on the whole
    cluster if this process is connected to Ray. An interrupted call keeps what it has decoded; the next one decodes
    what is missing or damaged.

    Args:
        dataset: a name of `list_datasets()`, or the path of a folder of class folders.
        image_size: in pixels.
        cache: a folder or an address in a bucket (see `pipeline.storage.paths.image_cache`).
        folder: where the files of data sets lie that are in no package.
        test_fraction: above 0 and below 1.
        most_passed_over: the largest share of the images of a folder that may be passed over, 0 to 1.
        max_pixels: the most pixels that an image file may have.

    Raises:
        UserError: the data set or a setting is impossible, or an image cannot be read.
    """
    if image_size < 1:
        raise UserError(f"image_size = {image_size}: must be at least 1 pixel")
    if not 0 < test_fraction < 1:
        raise UserError(f"test_fraction = {test_fraction}: must be above 0 and below 1")
    place = str(cache).rstrip("/") if is_in_bucket(cache) else os.path.abspath(Path(cache).expanduser())
    here = node_cache(place)
    source = find_dataset(dataset, folder, downloads_folder(here), most_passed_over)
    # Not the limits: they decide whether a data set is refused, not what is decoded.
    key = [DECODED_FORMAT, source.name, source.listing, image_size, images_per_shard(image_size), WINDOW]
    if not source.has_test:
        key += [test_fraction, SPLIT_SEED]
    stored = image_set_folder(place, source.name, image_size, settings_hash(key))
    return _opened_or_stored(stored, here, lambda: _store(source, stored, image_size, test_fraction, max_pixels))


# The decoded data set


class _Incomplete(UserError):
    """A decoded data set is missing, incomplete or damaged."""

    def __init__(self, stored: str, fault: str):
        super().__init__(f"image cache {stored} is incomplete: {fault}")


def _opened_or_stored(stored: str, here: Path, store: Callable[[], None]) -> Images:
    """Return the data set at a place, after storing it there if it is missing or damaged.

    Args:
        stored: the place.
        here: a folder of this node, where processes wait for each other: the first one stores.
        store: stores what is missing.

    Raises:
        UserError: the folder cannot be made, or the data set cannot be stored.
    """
    with suppress(_Incomplete):
        return open_images(stored)
    try:
        here.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"image cache {here} cannot be made: {error.strerror}") from error
    with FileLock(here / f"{stored.rpartition('/')[2]}.lock"):
        try:
            return open_images(stored)
        except _Incomplete as fault:
            if file_sizes(stored):
                log.warning("%s: decoding what is missing", fault)
            store()
    return open_images(stored)


def open_images(stored: str) -> Images:
    """Return the data set that was decoded to a place (`Images.place`); its source files are not needed.

    Raises:
        UserError: it is incomplete. The shards of large parts are compared later, when they are read.
    """
    try:
        meta = json.loads(read_bytes(f"{stored}/meta.json"))
        if meta.pop("checksum") != settings_hash(meta):
            raise _Incomplete(stored, "meta.json is damaged")
        if "texts" in meta:
            try:
                return open_text(stored, **meta)
            except DamagedText as error:
                raise _Incomplete(stored, str(error)) from error
        sizes = file_sizes(stored)
        parts = {part: _open_part(stored, sizes, **meta["parts"][part]) for part in ("train", "test")}
        return Images(
            name=meta["name"],
            settings_hash=stored.rpartition("-")[2],
            classes=tuple(meta["classes"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            train=parts["train"],
            test=parts["test"],
            place=stored,
        )
    except FileNotFoundError as error:
        raise _Incomplete(stored, f"{Path(error.filename).name} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Incomplete(stored, f"meta.json: {error!r}") from error


def _open_part(
    stored: str, sizes: dict[str, int], side: int, shards: list[dict[str, Any]], labels: dict[str, str]
) -> ImageSubset:
    pixels = PixelShards(stored, side, [ImageShard(**shard) for shard in shards])
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
    if checksum_of(content) != labels["sha256"]:
        raise _Incomplete(stored, f"{labels['file']} is damaged")
    return ImageSubset(pixels, np.load(io.BytesIO(content)))


def _store(source: DatasetSource, stored: str, image_size: int, test_fraction: float, max_pixels: int) -> None:
    """Decode the missing shards of a data set and write its labels, then `meta.json`."""
    images = source.read()
    train, test = images.train, images.test
    if test is None:
        train, test = _split(source, train, images.classes, test_fraction)
    to_decode = {"train": _shuffled_if_large(train, image_size), "test": _shuffled_if_large(test, image_size)}
    shards = decode_shards(stored, to_decode, image_size, source.name, max_pixels)
    parts = {
        part: {
            "side": image_size,
            "shards": [asdict(shard) for shard in shards[part]],
            "labels": _store_labels(stored, f"{part}_labels.npy", to_decode[part].labels),
        }
        for part in to_decode
    }
    mean, std = _statistics(shards["train"], image_size)
    meta = {"name": source.name, "classes": images.classes, "mean": mean, "std": std, "parts": parts}
    write_bytes(f"{stored}/meta.json", json.dumps(meta | {"checksum": settings_hash(meta)}, indent=1).encode())
    log.info("decoded %s: %d + %d images (train, test), in %s", source.name, len(train), len(test), stored)


def _store_labels(stored: str, file: str, labels: np.ndarray) -> dict[str, str]:
    buffer = io.BytesIO()
    np.save(buffer, labels)
    content = buffer.getvalue()
    write_bytes(f"{stored}/{file}", content)
    return {"file": file, "sha256": checksum_of(content)}


def _statistics(shards: Sequence[ImageShard], image_size: int) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of the three channels, on a scale of 0..1."""
    sums = np.array([[shard.sums, shard.squares] for shard in shards]).sum(axis=0).astype(np.float64)
    count = sum(shard.images for shard in shards) * image_size**2
    mean, mean_of_squares = sums / (count * np.array([[255], [255**2]]))
    # A constant channel gets the deviation of one step of uint8, because batches are divided by it.
    return mean.tolist(), np.sqrt((mean_of_squares - mean**2).clip(min=1 / 255**2)).tolist()


def _shuffled_if_large(images: RawImages, image_size: int) -> RawImages:
    """Return the images in random order if epochs go through them in windows, because files come class by class."""
    if len(images) <= WINDOW * images_per_shard(image_size):
        return images
    return images.take(keyed_rng(SHUFFLE_SEED).permutation(len(images)))


def _split(
    source: DatasetSource, images: RawImages, classes: tuple[str, ...], fraction: float
) -> tuple[RawImages, RawImages]:
    """Return the train and the test part; each class is split on its own and has an image in both."""
    chosen = []
    for label, positions in positions_by_class(images.labels):
        if len(positions) < 2:
            raise UserError(
                f"class {classes[label]} of {source.name} has one image: needed are at least 2, one to test"
            )
        count = min(max(round(fraction * len(positions)), 1), len(positions) - 1)
        chosen.append(keyed_rng(SPLIT_SEED, label).permutation(positions)[:count])
    in_test = np.zeros(len(images), dtype=bool)
    in_test[np.concatenate(chosen)] = True
    return images.take(np.flatnonzero(~in_test)), images.take(np.flatnonzero(in_test))
