"""Files in the storage: a local folder, or `s3://bucket/prefix`. Whatever the pipeline keeps goes through here.

A file appears whole or not at all: locally under a temporary name first, then renamed; in a bucket by one put. Readers
see what other processes wrote a moment ago: nothing about the content of a bucket is remembered.

A bucket that throttles, answers 500, 502, 503 or 504, refuses or resets connections or is silent is asked again, for
about two minutes, by the retries of botocore; `AWS_MAX_ATTEMPTS` and `AWS_RETRY_MODE`, where they are set, decide.
What remains and the user can mend (a full disk, no permission, no such bucket) is raised as UserError.
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

from pipeline.errors import UserError

log = logging.getLogger(__name__)

# The waits between attempts are random, up to 1, 2, 4, 8, 16 and then always 20 s: 135 s in all on average, and less
# than 60 s once in 20,000 times.
ATTEMPTS = 18
# Of 500 tokens that a client of botocore has for retries each takes 5: so many requests at once can be tried as often.
AT_ONCE = 5
_turns = BoundedSemaphore(AT_ONCE)  # of the threads of this process, whoever started them
CUT_READS = 5  # attempts at a file whose content breaks off on its way, which no retry of botocore covers
WARN_AT = 3  # the attempt at which the user is told what is waited for

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_in_bucket(place: str | Path) -> bool:
    """Whether a place is one of a bucket."""
    return str(place).startswith("s3://")


def filesystem_at(place: str | Path) -> tuple[Any, str]:
    """The fsspec filesystem of a place, this process's own, and the path there."""
    if not is_in_bucket(place):
        return fsspec.core.url_to_fs(str(place))
    filesystem, path = fsspec.core.url_to_fs(
        place,
        config_kwargs={"retries": _retries()},
        use_listings_cache=False,
        max_concurrency=1,  # more would ask for the size of a file before each read
    )
    filesystem.retries = 1  # s3fs has retries of its own, which would multiply those of botocore
    filesystem.s3.meta.events.register("needs-retry.s3", _warn_of_waiting, unique_id=__name__)
    return filesystem, path


def read_bytes(place: str | Path) -> bytes:
    """The content of a file. Raises FileNotFoundError if there is none."""
    try:
        with as_user_error(place, "read"):
            return _read(*filesystem_at(place))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from error


def read_folder(folder: str, suffix: str) -> dict[str, bytes]:
    """The contents, by name, of the files that lie directly in a folder and whose names end so."""
    names = sorted(name for name in file_sizes(folder) if name.endswith(suffix))
    with as_user_error(folder, "read"):
        filesystem, path = filesystem_at(folder)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = pool.map(lambda name: _read(filesystem, f"{path}/{name}"), names)
            return dict(zip(names, contents, strict=True))


def file_sizes(folder: str) -> dict[str, int]:
    """The bytes, by name, of each file that lies directly in a folder; empty if there is no such folder."""
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
    """Writes a file, atomically, and the folders that it lies in."""
    with as_user_error(place, "written"):
        filesystem, path = filesystem_at(place)
        if not _is_local(filesystem):
            with _turns:
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
    """Removes a file, or a folder and all that it holds, if it is there."""
    with as_user_error(place, "removed"):
        filesystem, path = filesystem_at(place)
        if not _is_local(filesystem):
            # One by one: s3fs does not tell which files of a bulk request were refused.
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(filesystem.rm_file, filesystem.find(path)))
        elif Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)


def _is_local(filesystem: Any) -> bool:
    return "file" in filesystem.protocol


def _retries() -> dict[str, Any]:
    """What botocore is told about retries, beside what the environment tells it."""
    mode = os.environ.get("AWS_RETRY_MODE")
    retries: dict[str, Any] = {} if mode else {"mode": "standard"}
    if not os.environ.get("AWS_MAX_ATTEMPTS") and mode != "legacy":  # whose waits have no upper limit
        retries["total_max_attempts"] = ATTEMPTS
    return retries


def _warn_of_waiting(
    attempts: int, response: tuple | None, caught_exception: Exception | None, endpoint: Any, **_: Any
) -> None:
    """Called by botocore after every answer; says once for each request that the bucket is waited for."""
    if attempts == WARN_AT and (response is None or response[0].status_code >= 500):
        reason = _reason(caught_exception) if response is None else f"status {response[0].status_code}"
        log.warning("%s does not answer (%s): asking again", endpoint.host, reason)


def _read(filesystem: Any, path: str) -> bytes:
    if _is_local(filesystem):
        return filesystem.cat_file(path)
    with _turns:
        for _ in range(CUT_READS - 1):
            with suppress(*_cut_errors()):
                return filesystem.cat_file(path)
        return filesystem.cat_file(path)


def _cut_errors() -> tuple[type[Exception], ...]:
    """What is raised when the content of a file breaks off on its way.

    The clients of buckets are imported where one is used: a local storage does not wait for them.
    """
    from aiobotocore.response import AioReadTimeoutError
    from aiohttp import ClientPayloadError
    from botocore.exceptions import IncompleteReadError, ResponseStreamingError

    return AioReadTimeoutError, ClientPayloadError, IncompleteReadError, ResponseStreamingError


@contextmanager
def as_user_error(place: str | Path, done: str) -> Iterator[None]:
    """Raises as UserError what the user can mend: `place` cannot be `done`, and what would be right."""
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
    number = getattr(error, "errno", None)
    if number in FULL:
        return f"{os.strerror(number).lower()}\nfree some space there, or keep it where there is more"
    if number in FORBIDDEN:
        return f"{os.strerror(number).lower()}\nmust lie in a folder that may be read and written"
    return None


def _explain_bucket(error: Exception, place: str | Path, seconds: float) -> str | None:
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
    """The code and message with which a bucket answered, and the HTTP status; s3fs keeps them as a cause."""
    while error is not None:
        if response := getattr(error, "response", None):
            return {**response["Error"], "status": response["ResponseMetadata"]["HTTPStatusCode"]}
        error = error.__cause__
    return {}


def _reason(error: Exception | None) -> str:
    """What an exception says, in one line; botocore keeps that of the network inside its own."""
    inner = getattr(error, "kwargs", {}).get("error") or error
    return " ".join(str(inner).split())[:200] or type(inner).__name__


def _endpoint(place: str | Path) -> str:
    return filesystem_at(place)[0].s3.meta.endpoint_url
