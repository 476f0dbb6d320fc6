"""Decoded images in shards: decoded once, then mapped into memory from a disk of the node.

Dimensions: N images, n images of a shard, B images of a batch, K shards, C channels (always 3), S image side in pixels.

The folder of a data set holds the shards of each part, such as `train-00003.npy`: uint8 (n, 3, S, S), as NumPy writes
it. Each shard has a record (see `pipeline.storage.records`), so that an interrupted run decodes only what is missing.
The bytes of a shard are a function of its images alone.

Shards in a local folder, or on a disk that nodes share, are mapped from there. Shards in a bucket are first copied to
`~/.cache/ghn/images` on demand, once for all processes of a node. Each process compares a shard with its checksum
before it reads images from the shard, in threads beside the one that computes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from filelock import FileLock

from pipeline.console import progress_bar
from pipeline.errors import UserError
from pipeline.images.pixels import MAX_PIXELS
from pipeline.images.sources import RawImages, resized
from pipeline.storage.files import AT_ONCE, file_sizes, read_bytes, write_bytes
from pipeline.storage.paths import is_in_bucket, node_image_cache
from pipeline.storage.records import Origin, Record, checksum_of, find_outputs, write_output

log = logging.getLogger(__name__)

SHARD_BYTES = 64_000_000
"""Bytes of pixels of a shard, at most: 425 images of 224×224 pixels, 20,833 of 32×32."""

WINDOW = 16
"""Number of shards that an epoch samples from at the same time: 1 GB and 6,800 images of ImageNet at 224×224 pixels."""

CHUNK = 16
"""Number of images that a thread decodes at a time."""

MAPPED_SHARDS = 4 * WINDOW
"""Number of shards that a process keeps mapped, because their pages and file descriptors count as its own."""

LEFTOVER_SECONDS = 600
"""Seconds without a change after which a temporary file belongs to a killed writer."""

FETCH_THREADS = AT_ONCE
"""Threads of a process that fetch and compare shards."""


@dataclass(frozen=True)
class ImageShard:
    """One file of a part, as meta.json names it.

    Attributes:
        images: number of images.
        bytes: size of the file.
        sha256: checksum of the file, hexadecimal.
        sums: exact sum of all values of each channel, 3 integers.
        squares: exact sum of their squares, 3 integers.
    """

    file: str
    images: int
    bytes: int
    sha256: str
    sums: list[int]
    squares: list[int]

    @classmethod
    def of(cls, file: str, record: Record) -> ImageShard:
        """Return the shard that a record describes."""
        return cls(file, bytes=record.size, sha256=record.checksum, **record.data)


def images_per_shard(image_size: int) -> int:
    """Return how many images a shard has; the last shard of a part may have fewer."""
    return max(1, SHARD_BYTES // (3 * image_size**2))


def node_cache(place: str | Path) -> Path:
    """Return the folder on a disk of this node that stands for an image cache: the cache itself if it is local."""
    return node_image_cache() if is_in_bucket(place) else Path(place)


def is_small(folder: str, shards: int) -> bool:
    """Return whether a part of so many shards is compared when it is opened, because all shards are needed at once."""
    return shards <= WINDOW and not is_in_bucket(folder)


# Writing


def decode_shards(
    folder: str, parts: Mapping[str, RawImages], image_size: int, title: str, max_pixels: int = MAX_PIXELS
) -> dict[str, list[ImageShard]]:
    """Decode the images of each part into shards in `folder`, and return all shards by part.

    Shards that an interrupted run has finished are kept. Image files are decoded by tasks on the cluster if this
    process is connected to Ray, arrays by threads.

    Args:
        title: name of the data set for progress bars.
        max_pixels: the most pixels that an image file may have.

    Raises:
        UserError: an image cannot be read, or the disk is too small.
    """
    cut = {part: _cut(part, images, image_size) for part, images in parts.items()}
    wanted = {file: images for files in cut.values() for file, images in files.items()}
    done = _finished(folder, cut)
    todo = {file: images for file, images in wanted.items() if file not in done}
    if done and todo:
        log.info("%s: %d of %d shards are there already, in %s", title, len(done), len(wanted), folder)
    if not is_in_bucket(folder):
        _require_space(Path(folder), sum(map(len, todo.values())) * 3 * image_size**2)
    before = len(done)
    try:
        for shard in _decoded(folder, todo, image_size, title, max_pixels):
            done[shard.file] = shard
    except BaseException:  # Ctrl-C too
        if len(done) > before:
            kept = f"{len(done)} of {len(wanted)} shards are decoded and kept in {folder}"
            log.warning("%s: %s, and the same command goes on from there", title, kept)
        raise
    if todo:
        _require_seen(folder, done)
        _remove_leftovers(folder)
    return {part: [done[file] for file in files] for part, files in cut.items()}


def _cut(part: str, images: RawImages, image_size: int) -> dict[str, np.ndarray | list[str]]:
    """Return the images of each shard of a part, by file name."""
    size = images_per_shard(image_size)
    starts = range(0, len(images), size)
    return {f"{part}-{number:05d}.npy": images.images[start : start + size] for number, start in enumerate(starts)}


def _finished(folder: str, cut: Mapping[str, Mapping[str, np.ndarray | list[str]]]) -> dict[str, ImageShard]:
    """Return the shards that an earlier run has finished, by file name; small parts are compared with checksums."""
    records = find_outputs(folder)
    finished = {}
    for files in cut.values():
        for file in files.keys() & records.keys():
            if records[file].made_from != _made_from(folder, file, len(files[file])):
                continue
            shard = ImageShard.of(file, records[file])
            if not is_small(folder, len(files)) or _is_intact(Path(folder, file), shard):
                finished[file] = shard
    return finished


def _made_from(folder: str, file: str, images: int) -> Origin:
    """Return what a shard depends on: the data set and settings, which the folder's name stands for, and its place."""
    return {"data_set": folder.rpartition("/")[2], "file": file, "images": images}


def _decoded(
    folder: str, todo: Mapping[str, np.ndarray | list[str]], image_size: int, title: str, max_pixels: int
) -> Iterator[ImageShard]:
    """Yield each shard when it is decoded and written."""
    paths = {file: images for file, images in todo.items() if isinstance(images, list)}
    if todo and len(paths) == len(todo) and _drives_ray():
        yield from _decoded_on_the_cluster(folder, paths, image_size, title, max_pixels)
        return
    total = sum(map(len, todo.values()))
    with progress_bar(f"decoding {title}", "image", total, delay=1) as bar:
        for file, images in todo.items():
            yield decode_shard(folder, file, images, image_size, max_pixels, progress=bar.update)


def _decoded_on_the_cluster(
    folder: str, todo: Mapping[str, list[str]], image_size: int, title: str, max_pixels: int
) -> Iterator[ImageShard]:
    """Yield each shard when a task on the cluster has decoded and written it."""
    import ray  # takes a second to import; only a process that has connected to Ray comes here

    from pipeline.cluster.ray_cluster import run_tasks

    # Tasks get several cores where there are fewer shards than cores, but no more than the smallest node has.
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    threads = max(1, min(filter(None, cores), default=1) // len(todo))
    arguments = [
        (folder, file, [os.path.abspath(path) for path in paths], image_size, max_pixels, threads)
        for file, paths in todo.items()
    ]
    amounts = [len(paths) for paths in todo.values()]
    done = run_tasks(
        decode_shard, arguments, description=f"decode {title}", num_cpus=threads, unit=" images", amounts=amounts
    )
    for _, shard in done:
        yield shard


def _drives_ray() -> bool:
    """Return whether this process is a driver of Ray.

    A worker must not start tasks, because they could wait for the cores that the worker holds.
    """
    if "ray" not in sys.modules:  # no need to import it to know
        return False
    from pipeline.cluster.ray_private import is_driver

    return is_driver()


def decode_shard(
    folder: str,
    file: str,
    images: np.ndarray | list[str],
    image_size: int,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    progress: Callable[[int], Any] = lambda count: None,
) -> ImageShard:
    """Decode images (see `RawImages`) and write them as one shard.

    Args:
        max_pixels: the most pixels that an image file may have.
        threads: by default the number of cores.
        progress: called with the number of images after each chunk.

    Raises:
        UserError: a file cannot be read; the message names it.
    """
    pixels = np.empty((len(images), 3, image_size, image_size), dtype=np.uint8)

    def decode(start: int) -> int:
        chunk = images[start : start + CHUNK]
        for position, image in enumerate(chunk, start):
            pixels[position] = resized(image, image_size, max_pixels)
        return len(chunk)

    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes and resizes without the interpreter's lock
        for count in pool.map(decode, range(0, len(images), CHUNK)):
            progress(count)
    return write_image_shard(folder, file, pixels)


def write_image_shard(folder: str, file: str, pixels: np.ndarray) -> ImageShard:
    """Write pixels uint8 (n, 3, S, S) as one shard, and then its record."""
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    sums_C, squares_C = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for start in range(0, len(pixels), CHUNK):
        chunk_nCSS = pixels[start : start + CHUNK]
        sums_C += chunk_nCSS.sum(axis=(0, 2, 3), dtype=np.int64)
        squares_C += np.square(chunk_nCSS, dtype=np.uint32).sum(axis=(0, 2, 3), dtype=np.int64)
    data = {"images": len(pixels), "sums": sums_C.tolist(), "squares": squares_C.tolist()}
    made_from = _made_from(folder, file, len(pixels))
    return ImageShard.of(file, write_output(f"{folder}/{file}", buffer.getvalue(), made_from, data))


def _require_seen(folder: str, shards: Mapping[str, ImageShard]) -> None:
    """Raise UserError if this process does not see the shards that tasks have written on other nodes."""
    sizes = file_sizes(folder)
    for file, shard in shards.items():
        if sizes.get(file) != shard.bytes:
            raise UserError(
                f"shard {folder}/{file} was written by a node of the cluster, but is not to be seen from this one\n"
                "storage must be a folder that all nodes share, or a bucket"
            )


def _remove_leftovers(folder: str) -> None:
    """Delete temporary files of killed writers, which have not changed for `LEFTOVER_SECONDS`."""
    for file in () if is_in_bucket(folder) else Path(folder).glob("**/.*"):
        with suppress(FileNotFoundError):  # another host has deleted it
            if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                file.unlink()


def _require_space(folder: Path, needed: int) -> None:
    """Raise UserError if so many bytes do not fit on the disk of a folder."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(f"image cache {folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


# Reading


class PixelShards:
    """The pixels of one part, uint8 (N, 3, S, S), in K shards; indexed by an array of positions, like an array.

    Its pickle has the names of the shards, not their pixels.

    Attributes:
        bounds: positions (K + 1,) of the first image of each shard, and N.
        shape: (N, 3, S, S).
    """

    def __init__(self, folder: str, side: int, shards: Sequence[ImageShard]):
        self.folder, self.shards = folder, tuple(shards)
        self.bounds = np.cumsum([0, *(shard.images for shard in shards)])
        self.shape = (int(self.bounds[-1]), 3, side, side)
        self._here: dict[int, Future[Path]] = {}  # paths of intact shards on this node, by number
        self._lock = Lock()
        self._mapped = lru_cache(maxsize=MAPPED_SHARDS)(_mapped)

    def __reduce__(self) -> tuple:
        return PixelShards, (self.folder, self.shape[-1], self.shards)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """Return the images at these positions (B,), in this order: uint8 (B, 3, S, S).

        Raises:
            UserError: a shard is missing or damaged; the message names it.
        """
        numbers = self._numbers(positions)
        order = np.argsort(numbers, kind="stable")
        needed, starts = np.unique(numbers[order], return_index=True)
        for number in needed:  # all of them first, so that they are fetched at the same time
            self._ready(int(number))
        if len(needed) == 1:
            return self._open(int(needed[0]))[positions - self.bounds[needed[0]]]
        pixels = np.empty((len(positions), *self.shape[1:]), dtype=np.uint8)
        for number, rows in zip(needed, np.split(order, starts[1:]), strict=False):  # np.split([]) is one empty part
            pixels[rows] = self._open(int(number))[positions[rows] - self.bounds[number]]
        return pixels

    def compare(self) -> None:
        """Compare all shards with their checksums; raise UserError, which names the shard, if one is damaged."""
        for ready in [self._ready(number) for number in range(len(self.shards))]:
            ready.result()

    def prefetch(self, positions: np.ndarray) -> None:
        """Start to bring the shards of the images at these positions (B,) to this node's disk and memory."""
        for number in np.unique(self._numbers(positions)):
            ready = self._ready(int(number))
            if ready.done() and ready.exception() is None:
                _fetch_threads().submit(_read_ahead, ready.result())

    def _numbers(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.bounds, positions, side="right") - 1

    def _open(self, number: int) -> np.ndarray:
        return self._mapped(self._ready(number).result())

    def _ready(self, number: int) -> Future[Path]:
        """Return the path of an intact shard on this node, perhaps in the future; a failed prefetch is tried again."""
        with self._lock:
            ready = self._here.get(number)
            if ready is None or (ready.done() and ready.exception() is not None):
                ready = self._here[number] = _fetch_threads().submit(self._bring, self.shards[number])
            return ready

    def _bring(self, shard: ImageShard) -> Path:
        """Return the path of a shard on this node, after comparing it with its checksum."""
        if is_in_bucket(self.folder):
            return self._fetch(shard)
        path = Path(self.folder, shard.file)
        if not path.exists():
            raise UserError(f"shard {path} is missing\nthe same command, given again, decodes what is missing")
        if not _is_intact(path, shard):
            raise UserError(_damaged(path))
        return path

    def _fetch(self, shard: ImageShard) -> Path:
        """Return the path of a shard of a bucket in this node's cache, after copying it there if it is missing."""
        cache = node_cache(self.folder) / self.folder.rpartition("/")[2]
        path, place = cache / shard.file, f"{self.folder}/{shard.file}"
        if _is_intact(path, shard):
            return path
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"image cache {cache} cannot be made: {error.strerror}") from error
        with FileLock(f"{path}.lock"):  # one process fetches it, the others wait and find it
            if _is_intact(path, shard):
                return path
            if path.exists():
                log.warning("image cache: %s is damaged: fetching it again", path)
            for leftover in cache.glob(f".{shard.file}.*"):  # temporary files of killed processes
                leftover.unlink()
            _require_space(cache, sum(other.bytes for other in self.shards if not (cache / other.file).exists()))
            write_bytes(path, _download(place, shard))
        return path


def _download(place: str, shard: ImageShard) -> bytes:
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise UserError(f"shard {place} is missing\nthe same command, given again, decodes what is missing") from error
    if checksum_of(content) != shard.sha256:
        raise UserError(_damaged(place))
    return content


def _damaged(place: str | Path) -> str:
    return (
        f"shard {place} is damaged: its checksum is not that of meta.json beside it\n"
        "remove it: the same command, given again, decodes this shard again"
    )


def _is_intact(path: Path, shard: ImageShard) -> bool:
    """Return whether a local file is there and has the shard's size and checksum."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != shard.bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except FileNotFoundError:
        return False


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))  # an array is faster to index than a memmap


def _read_ahead(path: Path) -> None:
    """Ask the system to read a file into memory, without waiting for it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


@cache
def _fetch_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="image-shards")
