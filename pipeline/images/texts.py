"""Texts as data sets: the modules of Python's standard library, and any folder of text files.

Tokens are bytes, so the vocabulary has 256, or those of a tokenizer (`images.tokenizer`: a file of the package
tokenizers). All files of a data set follow one another, in the order of a hash of their names; where tokens are bytes,
each has the byte 0 after it. The last share of the bytes is the test part. A part is cut into windows of T + 1 tokens,
each of which begins at the last token of the one before: the first T are what a network reads, the last T what comes
next.

A data set is read once, and kept in the storage as two arrays of tokens. Each process holds both in memory.

Dimensions: N windows, T tokens.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.folders import MOST_PASSED_OVER
from pipeline.params import settings_hash
from pipeline.storage.files import read_bytes, write_bytes
from pipeline.storage.records import checksum_of

TEXT_FORMAT = 1
"""Part of the settings hash. Raise it when the same files would give other tokens."""

BYTES = tuple(repr(bytes([byte]))[2:-1] for byte in range(256))
"""The names of the tokens that are bytes: printable ASCII as it is."""

END_OF_FILE = b"\0"

MOST_BYTES = 2_000_000_000
"""Bytes of a data set, at most, because every process holds its tokens in memory."""


class DamagedText(Exception):
    """A stored part of a data set is not what was written."""


class Tokens(NamedTuple):
    """The tokens of both parts of a data set, the names of all that may be, and the mean bytes of a test token."""

    train: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]
    bytes_per_token: float


@dataclass(frozen=True)
class TextSource:
    """The files of a data set of text.

    Attributes:
        name: part of the name of its folder in the cache.
        files: by their names in the data set, in the order of a hash of these.
        passed_over: number of other files of the folder: hidden ones, and those that are no text in UTF-8.
        tokenizer: a file of the package tokenizers; None: tokens are bytes.
    """

    name: str
    files: dict[str, Path]
    passed_over: int = 0
    tokenizer: Path | None = None

    @property
    def listing(self) -> str:
        """A digest of the names and contents of the files, and of the tokenizer."""
        files = [(name, checksum_of(path.read_bytes())) for name, path in self.files.items()]
        return settings_hash([files, self.tokenizer and checksum_of(self.tokenizer.read_bytes())], 24)

    def read(self, test_fraction: float) -> Tokens:
        """Return the tokens of both parts.

        Raises:
            UserError: there is too much text, or the tokenizer cannot be read.
        """
        content = b"".join(path.read_bytes() + END_OF_FILE for path in self.files.values())
        if len(content) > MOST_BYTES:
            raise UserError(f"{self.name} has {len(content):,} bytes of text: must be at most {MOST_BYTES:,}")
        end = len(content) - round(test_fraction * len(content))
        if self.tokenizer is None:
            tokens = np.frombuffer(content, dtype=np.uint8)
            return Tokens(tokens[:end], tokens[end:], BYTES, 1.0)
        while end < len(content) and content[end] & 0b1100_0000 == 0b1000_0000:  # within a character of UTF-8
            end += 1
        return _tokenized(content[:end], content[end:], self.tokenizer)

    def summary(self) -> str:
        """Return how many files are read, and how many are passed over, for the terminal."""
        passed_over = f", {self.passed_over:,} passed over" if self.passed_over else ""
        return f"{len(self.files):,} text files{passed_over}"


def find_text(
    dataset: str, folder: str | None, most_passed_over: float = MOST_PASSED_OVER, tokenizer: Path | None = None
) -> TextSource:
    """Return the files of a data set of text.

    Args:
        dataset: `python`, or `text` for those of `folder`.
        most_passed_over: the largest share of a folder's files that may be passed over, 0 to 1.
        tokenizer: a file of the package tokenizers; None: tokens are bytes.

    Raises:
        UserError: there is no folder, it has no text, or too many of its files are none; or there is no tokenizer.
    """
    if tokenizer is not None and not tokenizer.is_file():
        raise UserError(f"images.tokenizer = {tokenizer}: there is no such file")
    if dataset == "python":
        library = Path(sysconfig.get_paths()["stdlib"])
        # Not those of packages: these are enough, 4.7 MB. One module says how this Python was built.
        files = [path for path in library.glob("*.py") if not path.name.startswith("_sysconfigdata")]
        name = f"python{platform.python_version()}"
        return TextSource(name, _in_order(library, files), tokenizer=tokenizer)
    if folder is None:
        raise UserError("dataset = text needs images.folder: the path of a folder of text files")
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"images.folder = {folder}: there is no such folder")
    found = [path for path in sorted(place.rglob("*")) if path.is_file()]
    texts = [path for path in found if not _is_hidden(path.relative_to(place)) and _is_text(path)]
    passed_over = len(found) - len(texts)
    if not texts:
        raise UserError(f"images.folder = {folder} has no text file: must hold files in UTF-8")
    if passed_over > most_passed_over * len(found):
        first = next(path for path in found if path not in texts)
        raise UserError(
            f"images.folder = {folder}: {passed_over:,} of {len(found):,} files are hidden or no text in UTF-8, "
            f"such as {first.relative_to(place)}\ntake them out, or raise images.passed_over = {most_passed_over:g}"
        )
    return TextSource(place.resolve().name, _in_order(place, texts), passed_over, tokenizer)


def _tokenized(train: bytes, test: bytes, path: Path) -> Tokens:
    """Return the tokens of both parts by a tokenizer, which reads each file in them alone.

    Raises:
        UserError: the package tokenizers is not installed, or it cannot read the file.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("images.tokenizer needs the package tokenizers: `pip install tokenizers`") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # it raises no other class
        raise UserError(f"images.tokenizer = {path} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = max(tokenizer.get_vocab().values()) + 1
    kind = np.uint16 if size <= np.iinfo(np.uint16).max + 1 else np.uint32

    def tokens_of(part: bytes) -> np.ndarray:
        files = [content.decode() for content in part.split(END_OF_FILE) if content]
        encodings = tokenizer.encode_batch(files, add_special_tokens=False)
        return np.array([number for encoding in encodings for number in encoding.ids], dtype=kind)

    train_tokens, test_tokens = tokens_of(train), tokens_of(test)
    vocabulary = tuple(tokenizer.id_to_token(number) or f"token {number}" for number in range(size))
    bytes_per_token = len(test.replace(END_OF_FILE, b"")) / max(len(test_tokens), 1)
    return Tokens(train_tokens, test_tokens, vocabulary, bytes_per_token)


def _in_order(root: Path, files: list[Path]) -> dict[str, Path]:
    """Return files by their names below a folder, in the order of a hash of these: random, but always the same."""
    named = {path.relative_to(root).as_posix(): path for path in files}
    return {name: named[name] for name in sorted(named, key=lambda name: hashlib.sha256(name.encode()).digest())}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_text(path: Path) -> bool:
    """Return whether a file is text in UTF-8 without the byte that stands for the end of a file."""
    content = path.read_bytes()
    if END_OF_FILE in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def text_settings(source: TextSource, length: int, test_fraction: float) -> str:
    """Return digits that change with everything that the windows depend on."""
    return settings_hash([TEXT_FORMAT, source.name, source.listing, length, test_fraction])


def store_text(source: TextSource, stored: str, length: int, test_fraction: float) -> None:
    """Write the parts of a data set to a folder, and then the file that names them.

    Raises:
        UserError: there is too little text for a window of each part, or too much.
    """
    found = source.read(test_fraction)
    parts = {}
    for part, tokens in (("train", found.train), ("test", found.test)):
        if len(tokens) <= length:
            raise UserError(
                f"{source.name} has {len(tokens):,} tokens in its {part} part: must be at least images.size + 1 = "
                f"{length + 1}"
            )
        buffer = io.BytesIO()
        np.save(buffer, tokens)
        parts[part] = {"file": f"{part}_text.npy", "sha256": checksum_of(buffer.getvalue())}
        write_bytes(f"{stored}/{parts[part]['file']}", buffer.getvalue())
    meta: dict[str, Any] = {
        "name": source.name,
        "length": length,
        "vocabulary": found.vocabulary,
        "bytes_per_token": found.bytes_per_token,
        "texts": parts,
    }
    write_bytes(f"{stored}/meta.json", json.dumps(meta | {"checksum": settings_hash(meta)}, indent=1).encode())


def open_text(
    stored: str,
    name: str,
    length: int,
    vocabulary: Sequence[str],
    bytes_per_token: float,
    texts: dict[str, dict[str, str]],
) -> Images:
    """Return a stored data set: its parts are windows of tokens, all of the same class.

    Raises:
        DamagedText: a file is not the one that was stored.
        FileNotFoundError: a file is missing.
    """
    parts = dict(_open_parts(stored, length, texts))
    return Images(
        name=name,
        settings_hash=stored.rpartition("-")[2],
        classes=tuple(vocabulary),
        mean=(0.0, 0.0, 0.0),  # tokens are not normalised
        std=(1.0, 1.0, 1.0),
        train=parts["train"],
        test=parts["test"],
        place=stored,
        bytes_per_token=bytes_per_token,
    )


def _open_parts(stored: str, length: int, texts: dict[str, dict[str, str]]) -> Iterator[tuple[str, ImageSubset]]:
    for part, entry in texts.items():
        content = read_bytes(f"{stored}/{entry['file']}")
        if checksum_of(content) != entry["sha256"]:
            raise DamagedText(f"{entry['file']} is damaged")
        tokens = np.load(io.BytesIO(content))
        windows_NT = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]
        yield part, ImageSubset(windows_NT, np.zeros(len(windows_NT), dtype=np.int64))
