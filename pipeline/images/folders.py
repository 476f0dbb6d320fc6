"""Folders of class folders, as people have them: what is used of one, and what is passed over and why.

The layout is `<class>/<image>`, or `<part>/<class>/<image>` with a part for training and one for testing. Images may
lie deeper within a class folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".tif", ".tiff", ".webp", ".jp2", ".j2k", ".jpf", ".jpx", ".avif", ".tga"),
)
"""Endings of the names of files that are read as images, in any case."""

OTHER_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".svg", ".psd", ".xcf", ".eps", ".pdf", ".raw", ".cr2", ".nef", ".arw", ".dng", ".orf"),
    *(".exr", ".hdr", ".dcm", ".nii", ".npy", ".npz", ".mat", ".fits", ".ico", ".wmf", ".emf"),
)
"""Endings of the names of files that hold images which are not read."""

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "eval", "dev")
"""Names of parts, in any case; of several for testing, the first of these is used."""

HIDDEN = "hidden (the name begins with a dot)"
OTHER_FORMAT = "of a format that is not read"
NO_IMAGE = "no image by its name"
UNREADABLE = "not readable"
SEEN = "a link to what was already found"
UNUSED_PART = "in a part that is not used"
OUTSIDE = "not in a class folder"

MOST_PASSED_OVER = 0.01
"""Largest share of images that may be passed over."""

COUNTED = (OTHER_FORMAT, UNREADABLE, OUTSIDE)
"""Reasons for which an image that somebody may want is passed over."""


@dataclass
class PassedOver:
    """The files and folders that were passed over: how many for each reason, and the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str | Path, count: int = 1) -> None:
        """Count files that were passed over."""
        self.counts[reason] += count
        self.examples.setdefault(reason, str(path))

    def lines(self) -> list[str]:
        """Return a line for each reason."""
        return [
            f"passed over: {count} {reason}, such as {self.examples[reason]}" for reason, count in self.counts.items()
        ]


@dataclass
class ImageFolder:
    """What was found in a folder of images."""

    classes: list[str]
    train: dict[str, list[str]]
    """Image files of each class, sorted."""
    test: dict[str, list[str]] | None
    """Those of the part for testing; None if there is no such part."""
    passed_over: PassedOver

    @property
    def num_images(self) -> int:
        """The number of images of both parts."""
        return sum(len(files) for part in (self.train, self.test or {}) for files in part.values())

    def summary(self) -> str:
        """Return how many images and classes there are, and what was passed over."""
        parts = "" if self.test is None else f" ({_count(self.train)} to train on, {_count(self.test)} to test on)"
        first = f"{self.num_images} images{parts}, {len(self.classes)} classes"
        return "\n".join([first, *self.passed_over.lines()])

    def require_few_passed_over(self, folder: Path) -> None:
        """Check that not too many images were passed over that somebody may want.

        Raises:
            UserError: they are more than `MOST_PASSED_OVER`.
        """
        lost = sum(self.passed_over.counts[reason] for reason in COUNTED)
        if lost > MOST_PASSED_OVER * (self.num_images + lost):
            reasons = ", ".join(
                f"{self.passed_over.counts[reason]} {reason}, such as {self.passed_over.examples[reason]}"
                for reason in COUNTED
                if self.passed_over.counts[reason]
            )
            raise UserError(
                f"image folder {folder}: {lost} of {self.num_images + lost} images would be passed over: {reasons}\n"
                "repair them, or take them out of the folder"
            )


def _count(part: dict[str, list[str]]) -> int:
    return sum(map(len, part.values()))


# Finding


def scan(folder: Path, parts: tuple[str, str] | None = None) -> ImageFolder:
    """Return the images of a folder.

    Args:
        parts: the names of the parts to train and to test on; None: what is found is decisive.

    Raises:
        UserError: there are fewer than two classes, a class without images, or parts with different classes.
    """
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist\nexpected is <folder>/<class>/<image>")
    search = _Search()
    train, test = folder, None
    found_parts = _parts(search, folder) if parts is None else (folder / parts[0], folder / parts[1])
    if found_parts is not None:
        train, test = found_parts
        search.pass_over_rest(folder, {train.name, test.name} if test else {train.name})
    classes = _classes(search, train)
    train_files, test_files = search.images_by_class(train, classes), None
    if test is not None:
        _require_same_classes(train, classes, test, _classes(search, test))
        test_files = search.images_by_class(test, classes)
    result = ImageFolder(classes, train_files, test_files, search.passed_over)
    result.require_few_passed_over(folder)
    return result


def _require_same_classes(train: Path, train_classes: Sequence[str], test: Path, test_classes: Sequence[str]) -> None:
    different = sorted(set(train_classes) ^ set(test_classes))
    if different:
        raise UserError(
            f"class folder {different[0]} is in only one of {train} and {test}\n"
            "both need the same class folders: <folder>/<class>/<image>"
        )


def _parts(search: _Search, folder: Path) -> tuple[Path, Path | None] | None:
    """Return the folders to train and to test on; None if the folder holds classes.

    A class may be called "train" too: a part is a folder of class folders.
    """
    inner = {name: search.subfolders(folder / name) for name in search.subfolders(folder)}
    holders = [name for name, classes in inner.items() if classes]
    train = min((name for name in holders if _kind(name, TRAIN_NAMES)), key=lambda n: (len(n), n), default=None)
    if train is None:
        return None
    kinds = {name: _kind(name, TEST_NAMES) for name in holders if name != train}
    tests = [(TEST_NAMES.index(kind), len(name), name) for name, kind in kinds.items() if kind is not None]
    return folder / train, folder / min(tests)[-1] if tests else None


def _kind(name: str, kinds: Sequence[str]) -> str | None:
    """Return which of several words a folder's name is made with, such as `Train` or `seg_train`; None if with none."""
    words = re.split("[^a-z]+", name.casefold())
    return next((kind for kind in kinds if kind in words), None)


def _classes(search: _Search, folder: Path) -> list[str]:
    classes = search.subfolders(folder)
    if not classes:
        raise UserError(f"image folder {folder} holds no class folders\nexpected is {folder}/<class>/<image>")
    if len(classes) < 2:
        raise UserError(
            f"image folder {folder} holds one class folder, {classes[0]}\n"
            f"classification needs at least two: {folder}/<class>/<image>"
        )
    return classes


class _Search:
    """A search that finds each folder and each file once, and counts what it passes over."""

    def __init__(self) -> None:
        self.passed_over = PassedOver()
        self.seen: set[tuple[int, int]] = set()

    def subfolders(self, folder: Path) -> list[str]:
        """Return the names of the folders in a folder that are not hidden, sorted."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError:
            return []

    def pass_over_rest(self, folder: Path, used: set[str]) -> None:
        """Count the images of a folder's other parts."""
        for name in self.subfolders(folder):
            if name not in used:
                images = [path for path in self._files(str(folder / name)) if _is_image(path)]
                if images:
                    self.passed_over.add(UNUSED_PART, folder / name, len(images))

    def images_by_class(self, folder: Path, classes: Sequence[str]) -> dict[str, list[str]]:
        """Return the image files of each class, sorted.

        Raises:
            UserError: a class has none.
        """
        for entry in self._entries(str(folder)):
            if entry.name not in classes:
                self._pass_over(entry)
        found = {}
        for name in classes:
            files = sorted(path for path in self._files(str(folder / name)) if self._is_used(path))
            if not files:
                suffixes = ", ".join(IMAGE_SUFFIXES)
                raise UserError(
                    f"class folder {folder / name} holds no images\nexpected are files {suffixes}"
                    + "".join(f"\n{line}" for line in self.passed_over.lines())
                )
            found[name] = files
        return found

    def _is_used(self, path: str) -> bool:
        """Return whether a file is an image that is read; count it if it is not."""
        if not _is_image(path):
            other = path.lower().endswith(OTHER_IMAGE_SUFFIXES)
            self.passed_over.add(OTHER_FORMAT if other else NO_IMAGE, path)
        elif not os.access(path, os.R_OK):
            self.passed_over.add(UNREADABLE, path)
        else:
            return True
        return False

    def _pass_over(self, entry: os.DirEntry[str]) -> None:
        """Count what lies beside the class folders."""
        if entry.name.startswith("."):
            self.passed_over.add(HIDDEN, entry.path, _count_files(entry))
        elif not entry.is_dir():
            self.passed_over.add(OUTSIDE if _is_image(entry.name) else NO_IMAGE, entry.path)

    def _files(self, folder: str) -> Iterator[str]:
        """Yield all files below a folder, each once, whatever links lead to it."""
        if not self._is_new(folder):
            return
        for entry in self._entries(folder):
            if entry.name.startswith("."):
                self.passed_over.add(HIDDEN, entry.path, _count_files(entry))
            elif entry.is_dir():
                yield from self._files(entry.path)
            elif self._is_new(entry.path):
                yield entry.path

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Return what a folder holds, sorted; nothing if it cannot be read."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError:
            self.passed_over.add(UNREADABLE, folder)
            return []

    def _is_new(self, path: str) -> bool:
        """Return whether a folder or file was not found before; count it if it was, or if it cannot be read."""
        try:
            status = os.stat(path)
        except OSError:
            self.passed_over.add(UNREADABLE, path)
            return False
        place = status.st_dev, status.st_ino
        if place in self.seen:
            self.passed_over.add(SEEN, path)
            return False
        self.seen.add(place)
        return True


def _count_files(entry: os.DirEntry[str]) -> int:
    """Return how many files an entry is, with all that it holds if it is a folder."""
    return sum(len(files) for _, _, files in os.walk(entry.path)) if entry.is_dir() else 1


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)
