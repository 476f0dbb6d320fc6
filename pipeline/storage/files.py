"""Files in the storage, which is a local folder or `s3://bucket/prefix`: all reads and writes of the pipeline.

A file appears whole or not at all. A local file is written under a temporary name and renamed; an object of a bucket is
written by one put. Readers see what other processes wrote a moment before, because no listing of a bucket is cached.

botocore repeats a request, for about two minutes, if a bucket throttles it, answers 500, 502, 503 or 504, refuses or
resets connections, or does not answer. `AWS_MAX_ATTEMPTS` and `AWS_RETRY_MODE` change that. Errors that the user can
repair (a full disk, no permission, no such bucket) are raised as UserError.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from uuid import uuid4

import fsspec

from pipeline.errors import DISK_FULL, NO_PERMISSION, UserError
from pipeline.secrets import hidden, without_user_info
from pipeline.storage.paths import is_in_bucket, probe_file

log = logging.getLogger(__name__)

ATTEMPTS = 18
"""Attempts at a request of a bucket. The waits between them are random, up to 1, 2, 4, 8, 16 and then always 20 s:
135 s in all on average, and less than 60 s once in 20,000 times."""

AT_ONCE = 5
"""Requests of this process to buckets at the same time. A client of botocore has 500 tokens for retries, and each retry
takes 5: for so many requests the tokens are enough for all attempts."""

READ_ATTEMPTS = 5
"""Attempts at a file whose content breaks off during the transfer, which botocore does not repeat."""

WARN_AT = 3
"""The attempt at which a warning says that a bucket does not answer."""

_requests = BoundedSemaphore(AT_ONCE)  # shared by all threads of this process


def filesystem_at(place: str | Path) -> tuple[Any, str]:
    """Return the fsspec filesystem of a place, for this process alone, and the path in it."""
    if not is_in_bucket(place):
        # A local path is no address: `::`, `?` and `%20` may be part of it.
        return fsspec.filesystem("file"), os.path.abspath(Path(place).expanduser())
    filesystem = fsspec.filesystem(
        "s3",
        config_kwargs={"retries": _retries()},
        use_listings_cache=False,
        max_concurrency=1,  # more would ask for the size of a file before each read
    )
    filesystem.retries = 1  # s3fs has retries of its own, which would multiply those of botocore
    filesystem.s3.meta.events.register("needs-retry.s3", _warn_of_waiting, unique_id=__name__)
    # Not by `url_to_fs`, which takes `::` for a chain of addresses.
    return filesystem, str(place).removeprefix("s3://").rstrip("/")


def read_bytes(place: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read.
    """
    try:
        with as_user_error(place, "read"):
            return _read(*filesystem_at(place))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from error


def read_folder(folder: str, suffix: str) -> dict[str, bytes]:
    """Return the contents, by name, of the files that lie directly in a folder and whose names end in a suffix."""
    names = sorted(name for name in file_sizes(folder) if name.endswith(suffix))
    with as_user_error(folder, "read"):
        filesystem, path = filesystem_at(folder)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = pool.map(lambda name: _read(filesystem, f"{path}/{name}"), names)
            return dict(zip(names, contents, strict=True))


def file_sizes(folder: str) -> dict[str, int]:
    """Return the sizes in bytes, by name, of the files that lie directly in a folder; none if it does not exist."""
    with as_user_error(folder, "read"):
        filesystem, path = filesystem_at(folder)
        try:
            entries = filesystem.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            if _answer(error).get("Code") == "NoSuchBucket":
                raise
            return {}
    files = [(entry["name"].removeprefix(f"{path}/"), entry) for entry in entries if entry["type"] != "directory"]
    return {name: entry["size"] for name, entry in files if name and "/" not in name}


def write_bytes(place: str | Path, content: bytes) -> None:
    """Write a file atomically, after making the folders that it lies in."""
    with as_user_error(place, "written"):
        filesystem, path = filesystem_at(place)
        if not _is_local(filesystem):
            with _requests:
                filesystem.pipe_file(path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid4().hex}")
        try:
            partial.write_bytes(content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def remove(place: str | Path) -> None:
    """Remove a file, or a folder and its contents, if it exists."""
    with as_user_error(place, "removed"):
        filesystem, path = filesystem_at(place)
        if not _is_local(filesystem):
            # One by one, because s3fs does not say which files of a bulk request were refused.
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(filesystem.rm_file, filesystem.find(path)))
        elif Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def require_writable(storage: str) -> None:
    """Raise UserError if no file can be written below a storage."""
    if is_in_bucket(storage):
        _require_plain_endpoint()
    place = probe_file(storage)
    try:
        write_bytes(place, b"")
        remove(place)
    except UserError as error:
        raise UserError(f"storage = {storage}: {error}") from error
    except Exception as error:  # the clients of buckets have their own exceptions
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"storage = {storage} cannot be written: {reason}\n"
            "must be a folder, or s3://bucket/prefix with credentials in the environment"
        ) from error


def _require_plain_endpoint() -> None:
    """Raise UserError if the address of a bucket's server has a user, beside which requests cannot be signed."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        address = os.environ.get(name, "")
        if without_user_info(address) != address:
            raise UserError(
                f"{name} = {address} has a user: must be an address alone, such as {without_user_info(address)}\n"
                "the user and the password of a bucket are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )


def _is_local(filesystem: Any) -> bool:
    return "file" in filesystem.protocol


def _retries() -> dict[str, Any]:
    """Return the settings of retries for botocore, where the environment does not set them."""
    mode = os.environ.get("AWS_RETRY_MODE")
    retries: dict[str, Any] = {} if mode else {"mode": "standard"}
    if not os.environ.get("AWS_MAX_ATTEMPTS") and mode != "legacy":  # whose waits have no upper limit
        retries["total_max_attempts"] = ATTEMPTS
    return retries


def _warn_of_waiting(
    attempts: int, response: tuple | None, caught_exception: Exception | None, endpoint: Any, **_: Any
) -> None:
    """Log once for each request that a bucket does not answer; botocore calls this after every attempt."""
    if attempts == WARN_AT and (response is None or response[0].status_code >= 500):
        reason = _reason(caught_exception) if response is None else f"status {response[0].status_code}"
        log.warning("%s does not answer (%s): asking again", hidden(endpoint.host), reason)


def _read(filesystem: Any, path: str) -> bytes:
    if _is_local(filesystem):
        return filesystem.cat_file(path)
    with _requests:
        for _ in range(READ_ATTEMPTS - 1):
            with suppress(*_cut_errors()):
                return filesystem.cat_file(path)
        return filesystem.cat_file(path)


def _cut_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a transfer that breaks off.

    The clients of buckets are imported here because a local storage need not wait for them.
    """
    from aiobotocore.response import AioReadTimeoutError
    from aiohttp import ClientPayloadError
    from botocore.exceptions import IncompleteReadError, ResponseStreamingError

    return AioReadTimeoutError, ClientPayloadError, IncompleteReadError, ResponseStreamingError


@contextmanager
def as_user_error(place: str | Path, done: str) -> Iterator[None]:
    """Raise errors that the user can repair as UserError: that `place` cannot be `done`, why, and what to do."""
    started = time.monotonic()
    try:
        yield
    except Exception as error:
        seconds = time.monotonic() - started
        explanation = _explain_bucket(error, place, seconds) if is_in_bucket(place) else _explain_disk(error)
        if explanation is None:
            raise
        raise UserError(f"{place} cannot be {done}: {explanation}") from error


def _explain_disk(error: Exception) -> str | None:
    """Return what is wrong with a disk and what to do; None if the user can do nothing."""
    number = getattr(error, "errno", None)
    if number in DISK_FULL:
        return f"{os.strerror(number).lower()}\nfree some space there, or keep it where there is more"
    if number in NO_PERMISSION:
        return f"{os.strerror(number).lower()}\nmust lie in a folder that may be read and written"
    return None


def _explain_bucket(error: Exception, place: str | Path, seconds: float) -> str | None:
    """Return what is wrong with a bucket, after so many seconds, and what to do; None if the user can do nothing."""
    from botocore import exceptions

    answer = _answer(error)
    code, status = answer.get("Code"), answer.get("status", 0)
    unreachable = (exceptions.ConnectionError, exceptions.HTTPClientError, *_cut_errors())
    without_credentials = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.ProfileNotFound,
        exceptions.TokenRetrievalError,
    )
    permission = "must be credentials in the environment, or a role, that may list, read, write and delete there"
    if isinstance(error, without_credentials):
        return f"{_reason(error)}\n{permission}"
    if code == "NoSuchBucket":
        bucket = str(place).removeprefix("s3://").partition("/")[0]
        return f"there is no bucket {bucket} at {_endpoint(place)}\nmust be a bucket that exists"
    if isinstance(error, PermissionError):
        return f"{_endpoint(place)} refuses it: {code}, {_reason(error)}\n{permission}"
    if status >= 500 or isinstance(error, unreachable):
        reason = f"status {status}, {code}" if status else _reason(error)
        return (
            f"{_endpoint(place)} does not answer, tried for {seconds:.0f} s: {reason}\n"
            "must be up and reachable from here: AWS_ENDPOINT_URL names another, AWS_MAX_ATTEMPTS tries it longer"
        )
    return None


def _answer(error: BaseException | None) -> dict[str, Any]:
    """Return the code, message and HTTP status of a bucket's answer, which s3fs keeps in the cause of its exception."""
    while error is not None:
        if response := getattr(error, "response", None):
            return {**response["Error"], "status": response["ResponseMetadata"]["HTTPStatusCode"]}
        error = error.__cause__
    return {}


def _reason(error: Exception | None) -> str:
    """Return the message of an exception in one line; botocore keeps the network's exception inside its own."""
    inner = getattr(error, "kwargs", {}).get("error") or error
    return " ".join(str(inner).split())[:200] or type(inner).__name__


def _endpoint(place: str | Path) -> str:
    return filesystem_at(place)[0].s3.meta.endpoint_url
