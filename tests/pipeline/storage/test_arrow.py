from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from pipeline.errors import UserError
from pipeline.storage.arrow import arrow_filesystem
from pipeline.storage.files import file_sizes, read_bytes, write_bytes

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

CHECKPOINT = {
    "progress.json": b"{}",
    "optimizer.safetensors": bytes(range(256)) * 5000,  # more than Arrow copies at a time
    "ghn/model.safetensors": b"weights",
    "ghn/deep/er/config.json": b"",
}


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("bucket") if request.param == "bucket" else str(tmp_path / "storage")


def local_folder(folder: Path) -> Path:
    for name, content in CHECKPOINT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exists(filesystem: FileSystem, path: str) -> bool:
    return filesystem.get_file_info(path).type != FileType.NotFound


def everything_in(place: str) -> list[str]:
    """Return the names of all files below a place, hidden ones too."""
    filesystem, path = arrow_filesystem(place)
    selector = FileSelector(path, recursive=True, allow_not_found=True)
    return sorted(info.path.removeprefix(f"{path}/") for info in filesystem.get_file_info(selector) if info.is_file)


# --- there and back -----------------------------------------------------------------------------------------


def test_a_folder_is_copied_there_and_back(storage: str, tmp_path: Path) -> None:
    filesystem, path = arrow_filesystem(f"{storage}/run")
    here = local_folder(tmp_path / "here")
    copy_files(str(here), f"{path}/checkpoint", LocalFileSystem(), filesystem)
    assert everything_in(f"{storage}/run") == sorted(f"checkpoint/{name}" for name in CHECKPOINT)
    for name, content in CHECKPOINT.items():
        assert read_bytes(f"{storage}/run/checkpoint/{name}") == content

    copy_files(f"{path}/checkpoint", str(tmp_path / "back"), filesystem, LocalFileSystem())
    assert files_below(tmp_path / "back") == CHECKPOINT


def test_what_the_storage_wrote_is_read_and_the_other_way_round(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    write_bytes(f"{storage}/folder/one", b"written by the storage")
    with filesystem.open_input_file(f"{path}/folder/one") as file:
        assert (file.size(), file.read(7), file.tell()) == (22, b"written", 7)
        file.seek(11)
        assert file.read() == b"the storage"
    with filesystem.open_input_stream(f"{path}/folder/one") as stream:
        assert stream.read() == b"written by the storage"
    with filesystem.open_output_stream(f"{path}/folder/two") as stream:
        stream.write(b"written ")
        stream.write(b"by Arrow")
    assert read_bytes(f"{storage}/folder/two") == b"written by Arrow"
    assert filesystem.get_file_info(f"{path}/folder/two").size == 16


def test_a_file_is_replaced(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    for content in (b"a long first content", b"second"):
        with filesystem.open_output_stream(f"{path}/file") as stream:
            stream.write(content)
        assert read_bytes(f"{storage}/file") == content


def test_what_is_not_there_is_said_to_be_not_there(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    assert not exists(filesystem, f"{path}/nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        filesystem.open_input_file(f"{path}/nothing")


def test_a_relative_storage_is_copied_to_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    filesystem, path = arrow_filesystem("storage/training")
    here = local_folder(tmp_path / "here")
    copy_files(str(here), f"{path}/checkpoint", LocalFileSystem(), filesystem)
    assert files_below(tmp_path / "storage/training/checkpoint") == CHECKPOINT


# --- whole or not at all ------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_closed(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    stream = filesystem.open_output_stream(f"{path}/folder/file")
    stream.write(b"half of ")
    stream.flush()
    assert everything_in(storage) == []
    stream.write(b"the content")
    stream.close()
    assert everything_in(storage) == ["folder/file"]
    assert read_bytes(f"{storage}/folder/file") == b"half of the content"


def test_until_then_readers_see_the_file_that_was_there(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    write_bytes(f"{storage}/file", b"before")
    with filesystem.open_output_stream(f"{path}/file") as stream:
        stream.write(b"after")
        assert read_bytes(f"{storage}/file") == b"before"
    assert read_bytes(f"{storage}/file") == b"after"


def _write_half(place: str, told: Connection) -> None:
    filesystem, path = arrow_filesystem(place)
    stream = filesystem.open_output_stream(f"{path}/file")
    stream.write(bytes(2**20))
    stream.flush()
    told.send("written")
    signal.pause()


def test_a_writer_killed_before_it_closes_a_file_leaves_nothing(storage: str) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    writer = context.Process(target=_write_half, args=(storage, there))
    writer.start()
    assert here.poll(60) and here.recv() == "written"
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert everything_in(storage) == []


def test_a_file_that_is_given_up_is_not_written(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    stream = filesystem.open_output_stream(f"{path}/file")
    stream.write(b"half")
    del stream  # as Arrow does where the other side of a copy cannot be read
    assert everything_in(storage) == []


def test_a_copy_of_what_cannot_be_read_leaves_nothing(storage: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").symlink_to("/proc/self/mem")  # can be opened, but not read from its beginning
    filesystem, path = arrow_filesystem(storage)
    with pytest.raises(OSError, match=r"reading|read"):
        copy_files(str(tmp_path / "here"), path, LocalFileSystem(), filesystem)
    assert everything_in(storage) == []


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_can_be_made_again_and_removed(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    for _ in range(2):
        filesystem.create_dir(f"{path}/some/folder", recursive=True)
    for name in ("some/folder/a", "some/folder/below/b", "some/folder-2/c"):
        write_bytes(f"{storage}/{name}", b"content")
    filesystem.delete_dir(f"{path}/some/folder")
    assert everything_in(storage) == ["some/folder-2/c"]
    assert not exists(filesystem, f"{path}/some/folder")
    filesystem.delete_file(f"{path}/some/folder-2/c")
    assert everything_in(storage) == []


def test_a_selector_finds_what_lies_directly_in_a_folder(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    for name in ("run/one", "run/two", "run/checkpoint_0/three"):
        write_bytes(f"{storage}/{name}", b"content")
    found = filesystem.get_file_info(FileSelector(f"{path}/run"))
    assert sorted((info.base_name, info.is_file) for info in found) == [
        ("checkpoint_0", False),
        ("one", True),
        ("two", True),
    ]


# --- processes ----------------------------------------------------------------------------------------------


def _copy(filesystem: FileSystem, source: str, target: str) -> None:
    with filesystem.open_output_stream(target) as stream, filesystem.open_input_file(source) as file:
        stream.write(file.read() + b", copied")


def test_another_process_uses_the_filesystem_that_it_was_given(storage: str) -> None:
    filesystem, path = arrow_filesystem(storage)
    write_bytes(f"{storage}/file", b"content")
    copied = pickle.loads(pickle.dumps(filesystem))
    assert copied == filesystem
    _copy(copied, f"{path}/file", f"{path}/here")
    process = multiprocessing.get_context("fork").Process(
        target=_copy, args=(copied, f"{path}/file", f"{path}/elsewhere")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert read_bytes(f"{storage}/here") == read_bytes(f"{storage}/elsewhere") == b"content, copied"


# --- buckets and disks that fail ----------------------------------------------------------------------------


def test_a_bucket_that_is_away_for_a_moment_is_waited_for(flaky_bucket: FlakyBucket, tmp_path: Path) -> None:
    filesystem, path = arrow_filesystem(f"{flaky_bucket.url}/run")
    here = local_folder(tmp_path / "here")
    flaky_bucket.answer(503, requests=1)
    copy_files(str(here), f"{path}/checkpoint", LocalFileSystem(), filesystem)
    flaky_bucket.answer(503, "SlowDown", requests=1)
    copy_files(f"{path}/checkpoint", str(tmp_path / "back"), filesystem, LocalFileSystem())
    assert files_below(tmp_path / "back") == CHECKPOINT
    flaky_bucket.answer(500, "InternalError", requests=1)
    filesystem.delete_dir(f"{path}/checkpoint")
    assert everything_in(flaky_bucket.url) == []


def test_a_bucket_that_stays_away_is_named_and_has_no_half_of_a_file(
    flaky_bucket: FlakyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    filesystem, path = arrow_filesystem(flaky_bucket.url)
    stream = filesystem.open_output_stream(f"{path}/file")
    stream.write(b"content")
    flaky_bucket.answer(503, requests=1)
    with pytest.raises(UserError, match=r"s3://bucket/prefix/file cannot be written"):
        stream.close()
    assert stream.closed
    assert file_sizes(flaky_bucket.url) == {}


def test_a_disk_that_cannot_be_written_is_named(read_only_disk: Path) -> None:
    filesystem, path = arrow_filesystem(str(read_only_disk))
    stream = filesystem.open_output_stream(f"{path}/file")
    with pytest.raises(UserError, match=r"disk/file cannot be written: read-only file system"):
        stream.close()
