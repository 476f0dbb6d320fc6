"""Decoded images in shards: each decoded once, by whoever is at hand, and mapped from a disk of the node ever after.

Dimensions: N images, S image side in pixels; every image has 3 channels.

The folder of a set holds for each part its shards, `train-00003.npy`: uint8 (n, 3, S, S), as NumPy writes it. Each has
a record in `records/`, written after it: an interrupted run decodes what has none. A shard's bytes are a function of
its pictures alone, whoever decodes them.

Where the folder is local (or on a disk that nodes share), shards are mapped from there. Those in a bucket are copied to
`~/.cache/ghn/images` first, when they are needed, once for all processes of a node. Nothing is read from a shard before
it was compared with its checksum: once a process, by threads beside the one that computes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.images.sources import RawImages, resized
from pipeline.storage.files import AT_ONCE, file_sizes, is_in_bucket, read_bytes, read_folder, write_bytes
from pipeline.storage.paths import node_image_cache

log = logging.getLogger(__name__)

SHARD_BYTES = 64_000_000  # at most: 425 images of 224×224, 20,833 of 32×32
WINDOW = 16  # shards that are needed at a time: with those of ImageNet at 224×224, 1 GB and 6,800 images
RECORDS = "records"
CHUNK = 16  # images that a thread decodes at a time
MAPPED = 4 * WINDOW  # shards that a process has open at a time: their pages, and 64 file descriptors, count as its own
LEFT_SECONDS = 600
HELPERS = AT_ONCE  # threads that fetch and compare shards


@dataclass(frozen=True)
class ImageShard:
    """One file of a part. `sums` and `squares` are those of the values of its three channels, exact."""

    file: str
    images: int
    bytes: int
    sha256: str
    sums: list[int]
    squares: list[int]


def images_per_shard(image_size: int) -> int:
    """How many images a shard has; the last one of a part may have fewer."""
    return max(1, SHARD_BYTES // (3 * image_size**2))


def node_cache(place: str | Path) -> Path:
    """The folder on this node's disks for what belongs to a place of image sets: itself, if it is no bucket."""
    return node_image_cache() if is_in_bucket(place) else Path(place)


def is_small(folder: str, shards: int) -> bool:
    """Whether a part of so many shards is compared with its checksums when it is opened: all are needed anyway."""
    return shards <= WINDOW and not is_in_bucket(folder)


# Writing


def decode_shards(
    folder: str, parts: Mapping[str, RawImages], image_size: int, title: str
) -> dict[str, list[ImageShard]]:
    """Decodes the pictures of each part into shards below `folder`, those that are not there yet; returns all.

    Files are decoded by tasks on the cluster if this process is connected to Ray, everything else by threads. Killed
    in between, it goes on with the next shard when it is called again.
    Raises UserError if a picture cannot be read, or the disk is too small.
    """
    cut = {part: _cut(part, pictures, image_size) for part, pictures in parts.items()}
    wanted = {file: images for files in cut.values() for file, images in files.items()}
    done = _finished(folder, cut)
    todo = {file: images for file, images in wanted.items() if file not in done}
    if done and todo:
        log.info("%s: %d of %d shards are there already, in %s", title, len(done), len(wanted), folder)
    if not is_in_bucket(folder):
        _require_space(Path(folder), sum(map(len, todo.values())) * 3 * image_size**2)
    before = len(done)
    try:
        for shard in _decoded(folder, todo, image_size, title):
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


def _cut(part: str, pictures: RawImages, image_size: int) -> dict[str, Sequence[Any]]:
    """The pictures of each shard of a part, by its file name."""
    size = images_per_shard(image_size)
    starts = range(0, len(pictures), size)
    return {f"{part}-{number:05d}.npy": pictures.images[s : s + size] for number, s in enumerate(starts)}


def _finished(folder: str, cut: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, ImageShard]:
    """The shards that an earlier run has left, by file name; those of parts that are opened whole are compared."""
    sizes, records = file_sizes(folder), {}
    for content in read_folder(f"{folder}/{RECORDS}", ".json").values() if sizes else ():
        with suppress(ValueError, TypeError):  # a damaged record is none
            shard = ImageShard(**json.loads(content))
            records[shard.file] = shard
    finished = {}
    for files in cut.values():
        for file in files.keys() & records.keys():
            shard = records[file]
            whole = shard.images == len(files[file]) and sizes.get(file) == shard.bytes
            if whole and (not is_small(folder, len(files)) or _is_intact(Path(folder, file), shard)):
                finished[file] = shard
    return finished


def _decoded(folder: str, todo: Mapping[str, Sequence[Any]], image_size: int, title: str) -> Iterator[ImageShard]:
    """Yields each shard when it is decoded and written."""
    if todo and all(isinstance(images, list) for images in todo.values()) and _drives_ray():
        yield from _decoded_on_the_cluster(folder, todo, image_size, title)
        return
    every = 0.1 if sys.stderr.isatty() else 30  # seconds
    total = sum(map(len, todo.values()))
    with tqdm(total=total, unit=" images", desc=f"decoding {title}", delay=1, mininterval=every) as bar:
        for file, images in todo.items():
            yield decode_shard(folder, file, images, image_size, progress=bar.update)


def _decoded_on_the_cluster(
    folder: str, todo: Mapping[str, list[str]], image_size: int, title: str
) -> Iterator[ImageShard]:
    import ray

    from pipeline.cluster.ray_cluster import run_tasks

    # Few shards would leave cores idle; a task gets no more of them than the smallest node has.
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    threads = max(1, min(filter(None, cores), default=1) // len(todo))
    arguments = [
        (folder, file, [os.path.abspath(path) for path in paths], image_size, threads) for file, paths in todo.items()
    ]
    amounts = [len(paths) for paths in todo.values()]
    options = {"description": f"decode {title}", "num_cpus": threads, "unit": " images", "amounts": amounts}
    for _, shard in run_tasks(decode_shard, arguments, **options):
        yield shard


def _drives_ray() -> bool:
    """Whether this process is connected to Ray, and not as one of its workers, which may hold all cores already."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE


def decode_shard(
    folder: str,
    file: str,
    images: np.ndarray | Sequence[str],
    image_size: int,
    threads: int | None = None,
    progress: Callable[[int], Any] = lambda count: None,
) -> ImageShard:
    """Decodes pictures (see `RawImages`) and writes them as one shard.

    `threads` is by default as many as there are cores; `progress` is told of every few images that are decoded.
    Raises UserError, naming the file, if one cannot be read.
    """
    pixels = np.empty((len(images), 3, image_size, image_size), dtype=np.uint8)

    def decode(start: int) -> int:
        chunk = images[start : start + CHUNK]
        for position, image in enumerate(chunk, start):
            pixels[position] = resized(image, image_size)
        return len(chunk)

    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes and resizes without the interpreter's lock
        for count in pool.map(decode, range(0, len(images), CHUNK)):
            progress(count)
    return write_shard(folder, file, pixels)


def write_shard(folder: str, file: str, pixels: np.ndarray) -> ImageShard:
    """Writes pixels uint8 (n, 3, S, S) as one shard, and then its record."""
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    content = buffer.getvalue()
    sums = squares = 0
    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK]
        sums = sums + chunk.sum(axis=(0, 2, 3), dtype=np.int64)
        squares = squares + np.square(chunk, dtype=np.uint32).sum(axis=(0, 2, 3), dtype=np.int64)
    digest = hashlib.sha256(content).hexdigest()
    shard = ImageShard(file, len(pixels), len(content), digest, np.asarray(sums).tolist(), np.asarray(squares).tolist())
    write_bytes(f"{folder}/{file}", content)
    write_bytes(f"{folder}/{RECORDS}/{file}.json", json.dumps(asdict(shard)).encode())
    return shard


def _require_seen(folder: str, shards: Mapping[str, ImageShard]) -> None:
    """Raises UserError if what the tasks have written, maybe on other nodes, is not what this process finds."""
    sizes = file_sizes(folder)
    for file, shard in shards.items():
        if sizes.get(file) != shard.bytes:
            raise UserError(
                f"shard {folder}/{file} was written by a node of the cluster, but is not to be seen from this one\n"
                "storage must be a folder that all nodes share, or a bucket"
            )


def _remove_leftovers(folder: str) -> None:
    """Removes the halves of files that workers which were killed have left; nobody has written to them for long."""
    for file in () if is_in_bucket(folder) else Path(folder).glob("**/.*"):
        with suppress(FileNotFoundError):  # another host was faster
            if time.time() - file.stat().st_mtime > LEFT_SECONDS:
                file.unlink()


def _require_space(folder: Path, needed: int) -> None:
    """Raises UserError if so many bytes do not fit; a full disk would stop the work in its midst."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(f"image cache {folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


# Reading


class PixelShards:
    """The pixels of one part, uint8 (N, 3, S, S), in shards; indexed by an array of positions, like an array.

    Pickled, it is the names of its shards, not their pixels. `bounds` (K + 1,) are the positions where the K shards
    begin, and N.
    """

    def __init__(self, folder: str, side: int, shards: Sequence[ImageShard]):
        self.folder, self.shards = folder, tuple(shards)
        self.bounds = np.cumsum([0, *(shard.images for shard in shards)])
        self.shape = (int(self.bounds[-1]), 3, side, side)
        self._here: dict[int, Future[Path]] = {}  # where the intact shards lie on this node, by number
        self._lock = Lock()
        self._mapped = lru_cache(maxsize=MAPPED)(_mapped)

    def __reduce__(self) -> tuple:
        return PixelShards, (self.folder, self.shape[-1], self.shards)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The images at these positions (B,), in this order: uint8 (B, 3, S, S).

        Raises UserError, naming the shard, if one is missing or damaged.
        """
        numbers = self._numbers(positions)
        order = np.argsort(numbers, kind="stable")
        needed, starts = np.unique(numbers[order], return_index=True)
        for number in needed:  # all of them first: they are fetched side by side
            self._ready(int(number))
        if len(needed) == 1:
            return self._open(int(needed[0]))[positions - self.bounds[needed[0]]]
        pixels = np.empty((len(positions), *self.shape[1:]), dtype=np.uint8)
        for number, rows in zip(needed, np.split(order, starts[1:]), strict=False):  # no images are split into one part
            pixels[rows] = self._open(int(number))[positions[rows] - self.bounds[number]]
        return pixels

    def compare(self) -> None:
        """Compares all shards with their checksums. Raises UserError, naming the shard, if one is damaged."""
        for ready in [self._ready(number) for number in range(len(self.shards))]:
            ready.result()

    def prefetch(self, positions: np.ndarray) -> None:
        """Begins to bring the shards of the images at these positions to this node's disk and memory."""
        for number in np.unique(self._numbers(positions)):
            ready = self._ready(int(number))
            if ready.done() and ready.exception() is None:
                _helpers().submit(_read_ahead, ready.result())

    def _numbers(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.bounds, positions, side="right") - 1

    def _open(self, number: int) -> np.ndarray:
        return self._mapped(self._ready(number).result())

    def _ready(self, number: int) -> Future[Path]:
        """The place of an intact shard on this node; what failed ahead of need is tried again when it is needed."""
        with self._lock:
            ready = self._here.get(number)
            if ready is None or (ready.done() and ready.exception() is not None):
                ready = self._here[number] = _helpers().submit(self._bring, self.shards[number])
            return ready

    def _bring(self, shard: ImageShard) -> Path:
        if is_in_bucket(self.folder):
            return self._fetch(shard)
        path = Path(self.folder, shard.file)
        if not path.exists():
            raise UserError(f"shard {path} is missing\nthe same command, given again, decodes what is missing")
        if not _is_intact(path, shard):
            raise UserError(_damaged(path))
        return path

    def _fetch(self, shard: ImageShard) -> Path:
        """The path of a shard of a bucket in this node's cache, where it is afterwards."""
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
            for left in cache.glob(f".{shard.file}.*"):  # by a process that was killed
                left.unlink()
            _require_space(cache, sum(other.bytes for other in self.shards if not (cache / other.file).exists()))
            write_bytes(path, _download(place, shard))
        return path


def _download(place: str, shard: ImageShard) -> bytes:
    try:
        content = read_bytes(place)
    except FileNotFoundError as error:
        raise UserError(f"shard {place} is missing\nthe same command, given again, decodes what is missing") from error
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise UserError(_damaged(place))
    return content


def _damaged(place: str | Path) -> str:
    return (
        f"shard {place} is damaged: its checksum is not that of meta.json beside it\n"
        "remove it: the same command, given again, decodes this one anew"
    )


def _is_intact(path: Path, shard: ImageShard) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != shard.bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except FileNotFoundError:
        return False


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))  # a plain array is quicker to index than a memmap


def _read_ahead(path: Path) -> None:
    """Tells the system to have the file in memory, without waiting for it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(HELPERS, thread_name_prefix="image-shards")
