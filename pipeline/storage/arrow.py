"""The storage as an Arrow filesystem, which Ray Train keeps its checkpoints on.

All goes through `pipeline.storage.files`: a file appears whole or not at all, also where the writer is killed, and a bucket
that is away for a while is waited for.
"""

from __future__ import annotations

import io
import os
from typing import Any

from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pipeline.storage.files import filesystem_at, is_in_bucket, read_bytes, remove, write_bytes


def arrow_filesystem(place: str) -> tuple[PyFileSystem, str]:
    """The filesystem of a place of the storage, and the path there."""
    return PyFileSystem(StorageHandler(place)), filesystem_at(place)[1]


class StorageHandler(FSSpecHandler):
    """What Arrow asks of a filesystem. Files are read and written whole: those of a checkpoint are some megabytes."""

    def __init__(self, place: str):
        super().__init__(filesystem_at(place)[0])
        self.in_bucket, self.place = is_in_bucket(place), place

    def __reduce__(self) -> tuple[type[StorageHandler], tuple[str]]:
        return StorageHandler, (self.place,)  # each process has a filesystem of its own

    def create_dir(self, path: str, recursive: bool) -> None:
        if not self.in_bucket:  # which has no folders
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
        super().close()  # whoever gave it up unclosed had not finished it
