"""Folders of class folders, as people have them: what is used of one, and what is passed over and why.

The layout is `<class>/<image>`, or `<part>/<class>/<image>` with a part for training and one for testing. Images may
lie deeper within a class folder. Names that differ only in how Unicode composes their letters are the same class.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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

SYSTEM_NAMES = (
    *("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"),
    *("@eadir", "#recycle"),
)
"""Names, in small letters, of files and folders that operating systems and archives leave beside images."""

HIDDEN = "hidden (the name begins with a dot)"
SYSTEM = "left by a system or an archive"
OTHER_FORMAT = "of a format that is not read"
NO_IMAGE = "no image by its name"
EMPTY = "without any content"
UNREADABLE = "not readable"
SEEN = "a link to what was already found"
UNUSED_PART = "in a part that is not used"
OUTSIDE = "not in a class folder"

MOST_PASSED_OVER = 0.01
"""Share of the images of a folder that may be passed over, where no setting says it (`images.passed_over`)."""

COUNTED = (OTHER_FORMAT, EMPTY, UNREADABLE, OUTSIDE)
"""Reasons for which an image that somebody may want is passed over; `images.passed_over` limits their share."""


@dataclass
class PassedOver:
    """The files and folders that were passed over: how many for each reason, and the first of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str | Path, count: int = 1) -> None:
        """Count files that were passed over."""
        self.counts[reason] += count
        self.examples.setdefault(reason, _printable(path))

    def lines(self, reasons: Collection[str] | None = None) -> list[str]:
        """Return how many were passed over and the first of them, for each reason, or for some."""
        return [
            f"{count} {reason}, such as {self.examples[reason]}"
            for reason, count in self.counts.items()
            if reasons is None or reason in reasons
        ]


@dataclass
class ImageFolder:
    """What was found in a folder of images."""

    folder: Path
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
        return "\n".join([first, *(f"passed over: {line}" for line in self.passed_over.lines())])

    def require_few_passed_over(self, most: float = MOST_PASSED_OVER) -> None:
        """Check that not too many images were passed over that somebody may want.

        Raises:
            UserError: they are more than a share `most`.
        """
        lost = sum(self.passed_over.counts[reason] for reason in COUNTED)
        if lost > most * (self.num_images + lost):
            raise UserError(
                f"image folder {self.folder}: {lost} of {self.num_images + lost} images would be passed over, "
                f"more than images.passed_over = {most:g} allows: {'; '.join(self.passed_over.lines(COUNTED))}\n"
                "repair them, take them out of the folder, or raise images.passed_over"
            )


def _count(part: dict[str, list[str]]) -> int:
    return sum(map(len, part.values()))


# Finding


def scan(folder: Path, parts: tuple[str, str] | None = None) -> ImageFolder:
    """Return the images of a folder.

    Args:
        parts: the names of the parts to train and to test on; None: what is found is decisive.

    Raises:
        UserError: there are fewer than two classes, a class without images, or parts with different classes; folders
            that could be parts or classes; or a folder that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist\nexpected is <folder>/<class>/<image>")
    search = _Search()
    used = _parts(search, folder) if parts is None else [folder / name for name in parts]
    classes = [_classes(search, part) for part in used]
    if used == [folder]:
        _require_classes_not_parts(search, folder, classes[0])
    if len(used) > 1:
        _require_same_classes(used[0], classes[0], used[1], classes[1])
    # All of them before any is searched, because links within one may lead to the others.
    inner = [part / name for part, folders in zip(used, classes, strict=True) for name in folders.values()]
    for place in dict.fromkeys([folder, *used, *inner]):
        search.claim(place)
    if used != [folder]:
        search.pass_over_rest(folder, {part.name for part in used})
    found = [search.images_by_class(part, folders) for part, folders in zip(used, classes, strict=True)]
    return ImageFolder(folder, list(classes[0]), found[0], found[1] if len(found) > 1 else None, search.passed_over)


def _require_classes_not_parts(search: _Search, folder: Path, classes: Mapping[str, str]) -> None:
    """Raise UserError if all class folders hold the same folders and no images beside them: they may be parts."""
    names = list(classes.values())
    inner = search.subfolders(folder / names[0])
    if len(inner) < 2 or any(search.subfolders(folder / name) != inner for name in names[1:]):
        return
    if any(_is_image(entry.name) for name in names for entry in search.entries(str(folder / name))):
        return
    raise UserError(
        f"image folder {folder}: {names[0]} and {names[1]} hold the same folders, {', '.join(inner[:3])}: which of the "
        f"two are the classes?\nif it is {inner[0]} and {inner[1]}, call the parts train and test, or give one "
        f"part: {folder / names[0]}\nif it is {names[0]} and {names[1]}, take their images out of the inner folders"
    )


def _require_same_classes(
    train: Path, train_classes: Mapping[str, str], test: Path, test_classes: Mapping[str, str]
) -> None:
    different = sorted(train_classes.keys() ^ test_classes.keys())
    if different:
        raise UserError(
            f"class folder {different[0]} is in only one of {train} and {test}\n"
            "both need the same class folders: <folder>/<class>/<image>"
        )


def _parts(search: _Search, folder: Path) -> list[Path]:
    """Return the folders to train and, if there is one, to test on; the folder itself if it holds classes.

    A class may be called "train" too: a part is a folder of class folders.
    """
    inner = {name: search.subfolders(folder / name) for name in search.subfolders(folder)}
    holders = [name for name, classes in inner.items() if classes]
    train = min((name for name in holders if _kind(name, TRAIN_NAMES)), key=lambda n: (len(n), n), default=None)
    if train is None:
        return [folder]
    kinds = {name: _kind(name, TEST_NAMES) for name in holders if name != train}
    tests = [(TEST_NAMES.index(kind), len(name), name) for name, kind in kinds.items() if kind is not None]
    return [folder / train, *([folder / min(tests)[-1]] if tests else [])]


def _kind(name: str, kinds: Sequence[str]) -> str | None:
    """Return which of several words a folder's name is made with, such as `Train` or `seg_train`; None if with none."""
    words = re.split("[^a-z]+", name.casefold())
    return next((kind for kind in kinds if kind in words), None)


def _classes(search: _Search, folder: Path) -> dict[str, str]:
    """Return the names of the class folders by the names of their classes, which are composed (NFC), sorted.

    Raises:
        UserError: there are fewer than two, or two with the same name.
    """
    folders = search.subfolders(folder) if folder.is_dir() else []
    if not folders:
        raise UserError(f"image folder {folder} holds no class folders\nexpected is {folder}/<class>/<image>")
    if len(folders) < 2:
        inner = folder / folders[0]
        hint = f"\ndid you mean {inner}?" if len(search.subfolders(inner)) > 1 else ""
        raise UserError(
            f"image folder {folder} holds one class folder, {folders[0]}\n"
            f"classification needs at least two: {folder}/<class>/<image>{hint}"
        )
    classes: dict[str, str] = {}
    for name in folders:
        other = classes.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise UserError(
                f"image folder {folder}: class folders {other!a} and {name!a} have the same name, composed "
                "from letters in two ways\nput their images into one folder"
            )
    return dict(sorted(classes.items()))


class _Search:
    """A search that finds each folder and each file once, and counts what it passes over."""

    def __init__(self) -> None:
        self.passed_over = PassedOver()
        self.seen: set[tuple[int, int]] = set()

    def subfolders(self, folder: Path) -> list[str]:
        """Return the names of the folders in a folder that can be parts or classes, sorted."""
        return [entry.name for entry in self.entries(str(folder)) if _is_folder(entry) and _useless(entry.name) is None]

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Return what a folder holds, sorted.

        Raises:
            UserError: it cannot be read, because nobody knows how many images that loses.
        """
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"folder {_printable(folder)} cannot be read: {error.strerror}\n"
                "make it readable, or take it out of the folder of images"
            ) from error

    def claim(self, folder: Path) -> None:
        """Keep a folder from being found again; raise UserError if another one that is used is the same."""
        if self._size_if_new(str(folder)) is None:
            raise UserError(
                f"folder {_printable(folder)} is the same as another part or class, by a link\n"
                "each part and each class needs images of its own"
            )

    def pass_over_rest(self, folder: Path, used: set[str]) -> None:
        """Count what lies beside the parts that are used: other parts, and what lies in no part."""
        for entry in self.entries(str(folder)):
            if entry.name in used:
                continue
            if not _is_folder(entry) or _useless(entry.name):
                self._pass_over(entry)
                continue
            if self._size_if_new(entry.path) is None:
                continue
            images = [path for path, _ in self._files(entry.path) if _is_image(path)]
            if images:
                self.passed_over.add(UNUSED_PART, entry.path, len(images))

    def images_by_class(self, folder: Path, classes: Mapping[str, str]) -> dict[str, list[str]]:
        """Return the image files of each class, sorted, from the class folders with these names.

        Raises:
            UserError: a class has none.
        """
        for entry in self.entries(str(folder)):
            if entry.name not in classes.values():
                self._pass_over(entry)
        return {name: self._images_of_class(folder / folder_name) for name, folder_name in classes.items()}

    def _images_of_class(self, folder: Path) -> list[str]:
        before = self.passed_over.counts.copy()
        files = sorted(path for path, size in self._files(str(folder)) if self._is_used(path, size))
        if not files:
            passed_over = self.passed_over.lines((self.passed_over.counts - before).keys())
            found = f"\npassed over so far: {'; '.join(passed_over)}" if passed_over else ""
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise UserError(f"class folder {folder} holds no images\nexpected are files {suffixes}{found}")
        return files

    def _is_used(self, path: str, size: int) -> bool:
        """Return whether a file is an image that is read; count it if it is not."""
        if not _is_image(path):
            other = path.lower().endswith(OTHER_IMAGE_SUFFIXES)
            self.passed_over.add(OTHER_FORMAT if other else NO_IMAGE, path)
        elif not os.access(path, os.R_OK, effective_ids=True):
            self.passed_over.add(UNREADABLE, path)
        elif size == 0:
            self.passed_over.add(EMPTY, path)
        else:
            return True
        return False

    def _pass_over(self, entry: os.DirEntry[str]) -> None:
        """Count what lies beside the class folders, or is of no use."""
        reason = _useless(entry.name)
        if reason is not None:
            self.passed_over.add(reason, entry.path, _count_files(entry))
        elif not _is_folder(entry):
            self.passed_over.add(OUTSIDE if _is_image(entry.name) else NO_IMAGE, entry.path)

    def _files(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield the paths and sizes of all files below a folder, each once, whatever links lead to it."""
        for entry in self.entries(folder):
            if _useless(entry.name):
                self._pass_over(entry)
            elif (size := self._size_if_new(entry.path)) is None:
                continue
            elif _is_folder(entry):
                yield from self._files(entry.path)
            else:
                yield entry.path, size

    def _size_if_new(self, path: str) -> int | None:
        """Return the size of a folder or file in bytes; count it and return None if it is known or cannot be read."""
        try:
            status = os.stat(path)
        except OSError:
            self.passed_over.add(UNREADABLE, path)
            return None
        place = status.st_dev, status.st_ino
        if place in self.seen:
            self.passed_over.add(SEEN, path)
            return None
        self.seen.add(place)
        return status.st_size


def _useless(name: str) -> str | None:
    """Return why no file or folder of this name is of use; None if it may be."""
    if name.startswith("."):
        return HIDDEN
    return SYSTEM if name.casefold() in SYSTEM_NAMES else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; a link that leads nowhere or to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _count_files(entry: os.DirEntry[str]) -> int:
    """Return how many files an entry is, with all that it holds if it is a folder."""
    return sum(len(files) for _, _, files in os.walk(entry.path)) if _is_folder(entry) else 1


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _printable(path: str | Path) -> str:
    """Return a path as text that can be printed, also where its bytes are no text."""
    return os.fsencode(path).decode(errors="backslashreplace")
