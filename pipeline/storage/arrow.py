"""The storage as an Arrow filesystem, on which Ray Train keeps its checkpoints.

It reads and writes by `pipeline.storage.files`. So a file appears whole or not at all, also when the writer is killed,
and requests to a bucket that does not answer are repeated.
"""

from __future__ import annotations

import io
import os
from typing import Any

from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.storage.files import filesystem_at, read_bytes, remove, write_bytes
from pipeline.storage.paths import is_in_bucket


def arrow_filesystem(place: str) -> tuple[PyFileSystem, str]:
    """Return the filesystem of a place of the storage, and the path in it."""
    return PyFileSystem(StorageHandler(place)), filesystem_at(place)[1]


class StorageHandler(FSSpecHandler):
    """The functions that Arrow calls; they handle whole files, because those of a checkpoint have few megabytes."""

    def __init__(self, place: str):
        super().__init__(filesystem_at(place)[0])
        self.in_bucket, self.place = is_in_bucket(place), place

    def __reduce__(self) -> tuple[type[StorageHandler], tuple[str]]:
        return StorageHandler, (self.place,)  # each process makes its own filesystem

    def create_dir(self, path: str, recursive: bool) -> None:
        if not self.in_bucket:  # a bucket has no folders
            os.makedirs(path, exist_ok=True)

    def delete_dir(self, path: str) -> None:
        remove(self._address(path))

    def delete_file(self, path: str) -> None:
        remove(self._address(path))

    def open_input_file(self, path: str) -> PythonFile:
        return PythonFile(io.BytesIO(read_bytes(self._address(path))), mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        return PythonFile(_WrittenWhole(self._address(path)), mode="w")

    def _address(self, path: str) -> str:
        return f"s3://{path}" if self.in_bucket else path


class _WrittenWhole(io.BytesIO):
    """A file that is written when it is closed."""

    def __init__(self, address: str):
        super().__init__()
        self.address = address

    def close(self) -> None:
        if not self.closed:
            try:
                write_bytes(self.address, self.getvalue())
            finally:
                super().close()

    def __del__(self) -> None:
        """Never publish a half-written file from the destructor: only `close` writes it."""
        super().close()
