from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unprivileged import without_privileges

from pipeline.cluster.ray_cluster import ray_cluster, run_tasks
from pipeline.errors import UserError
from pipeline.storage.files import (
    AT_ONCE,
    ATTEMPTS,
    WARN_AT,
    file_sizes,
    filesystem_at,
    read_bytes,
    read_folder,
    remove,
    require_writable,
    write_bytes,
)

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

WRITE = "import sys; from pipeline.storage.files import write_bytes; write_bytes(sys.argv[1], bytes(int(sys.argv[2])))"


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("bucket") if request.param == "bucket" else str(tmp_path / "storage")


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    """Return the message for the user; it survives the way from a worker to the driver."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    return message


# --- files --------------------------------------------------------------------------------------------------


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text("abcXYZ019-_ [*]?%+=é", min_size=1, max_size=20), content=st.binary(max_size=100_000))
def test_what_is_written_is_read_again(storage: str, name: str, content: bytes) -> None:
    place = f"{storage}/some/folder/{name}.bin"
    write_bytes(place, content)
    assert read_bytes(place) == content
    assert file_sizes(f"{storage}/some/folder")[f"{name}.bin"] == len(content)


def test_a_file_is_replaced(storage: str) -> None:
    for content in (b"a long first content", b"second"):
        write_bytes(f"{storage}/file", content)
        assert read_bytes(f"{storage}/file") == content
    assert file_sizes(storage) == {"file": 6}


def test_what_is_not_there_is_said_to_be_not_there(storage: str) -> None:
    write_bytes(f"{storage}/folder/file", b"content")
    for place in ("nothing", "folder", "folder/file/below", "no/folder"):
        with pytest.raises(FileNotFoundError, match=place):
            read_bytes(f"{storage}/{place}")
    assert file_sizes(f"{storage}/nothing") == file_sizes(f"{storage}/folder/file") == {}
    assert read_folder(f"{storage}/nothing", "") == {}
    remove(f"{storage}/nothing")


def test_a_folder_has_the_files_that_lie_directly_in_it(storage: str) -> None:
    files = {f"{index}.json": b"x" * index for index in range(2 * AT_ONCE + 1)}
    for name, content in files.items():
        write_bytes(f"{storage}/folder/{name}", content)
    write_bytes(f"{storage}/folder/table.csv", b"1,2")
    write_bytes(f"{storage}/folder/below/12.json", b"below")
    write_bytes(f"{storage}/folder.json", b"beside")
    assert read_folder(f"{storage}/folder", ".json") == files
    assert file_sizes(f"{storage}/folder") == {name: len(content) for name, content in files.items()} | {"table.csv": 3}


def test_a_file_or_a_folder_is_removed_and_what_lies_beside_it_stays(storage: str) -> None:
    names = ("file", "file-2", "folder/a", "folder/below/b", "folder-2/c")
    for name in names:
        write_bytes(f"{storage}/{name}", b"content")
    remove(f"{storage}/file")
    remove(f"{storage}/folder")
    left = []
    for name in names:
        try:
            left.append((name, read_bytes(f"{storage}/{name}")))
        except FileNotFoundError:
            continue
    assert left == [("file-2", b"content"), ("folder-2/c", b"content")]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_sees_what_another_process_wrote_a_moment_ago(storage: str, method: str) -> None:
    def write_elsewhere(name: str, content: bytes) -> None:
        writer = multiprocessing.get_context(method).Process(target=write_bytes, args=(f"{storage}/{name}", content))
        writer.start()
        writer.join(60)
        assert writer.exitcode == 0

    write_bytes(f"{storage}/first", b"1")
    assert file_sizes(storage) == {"first": 1}
    assert file_sizes(f"{storage}/folder") == {}
    write_elsewhere("folder/second", b"22")
    write_elsewhere("first", b"new")
    assert file_sizes(storage) == {"first": 3}
    assert read_folder(storage, "") == {"first": b"new"}
    assert read_folder(f"{storage}/folder", "") == {"second": b"22"}


# --- writers that die ---------------------------------------------------------------------------------------


def start_writer(place: str, size: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITE, place, str(size)])


def test_a_writer_killed_in_the_middle_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    size, place = 200 * 2**20, tmp_path / "large"
    for _ in range(5):  # it may be done before it is killed
        writer = start_writer(str(place), size)
        while writer.poll() is None and not any(file.stat().st_size for file in tmp_path.glob(".large.*")):
            time.sleep(0.001)
        writer.kill()
        writer.wait()
        parts = [file.stat().st_size for file in tmp_path.glob(".large.*")]
        assert bool(parts) != place.exists()
        if parts:
            assert 0 < parts[0] < size
            return
        assert place.stat().st_size == size
        place.unlink()
    pytest.fail("five writers were done before they were killed")


def test_an_interrupted_put_leaves_no_object(flaky_bucket: FlakyBucket) -> None:
    with flaky_bucket.half_an_upload() as half_is_there:
        writer = start_writer(f"{flaky_bucket.url}/file", 50 * 2**20)
        assert half_is_there.wait(60)
        writer.kill()
        writer.wait()
    assert file_sizes(flaky_bucket.url) == {}
    write_bytes(f"{flaky_bucket.url}/file", b"whole")
    assert read_bytes(f"{flaky_bucket.url}/file") == b"whole"


# --- buckets that fail for a while --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fail",
    [
        lambda bucket: bucket.answer(500, "InternalError", requests=1),
        lambda bucket: bucket.answer(502, "BadGateway", requests=1),
        lambda bucket: bucket.answer(503, "SlowDown", requests=1),
        lambda bucket: bucket.answer(504, "GatewayTimeout", requests=1),
        lambda bucket: bucket.drop_connections(requests=1),
    ],
    ids=["500", "502", "503", "504", "dropped"],
)
def test_a_request_that_fails_for_no_fault_of_its_own_is_made_again(
    flaky_bucket: FlakyBucket, fail: Callable[[FlakyBucket], None]
) -> None:
    content = os.urandom(300_000)
    fail(flaky_bucket)
    write_bytes(f"{flaky_bucket.url}/file", content)
    assert flaky_bucket.requests == ["PUT /bucket/prefix/file"] * 2
    assert read_bytes(f"{flaky_bucket.url}/file") == content


def test_whatever_is_asked_of_a_bucket_is_asked_again(flaky_bucket: FlakyBucket) -> None:
    place = f"{flaky_bucket.url}/file"
    for function, *arguments in ((write_bytes, b"content"), (read_bytes,), (file_sizes,), (remove,)):
        flaky_bucket.answer(requests=1)
        function(place, *arguments)
    assert file_sizes(flaky_bucket.url) == {}


def test_a_file_whose_content_breaks_off_is_read_again(flaky_bucket: FlakyBucket) -> None:
    content = os.urandom(300_000)
    write_bytes(f"{flaky_bucket.url}/file", content)
    flaky_bucket.cut_downloads(3)
    assert read_bytes(f"{flaky_bucket.url}/file") == content


@pytest.mark.slow
def test_a_bucket_that_is_away_for_some_seconds_is_waited_for(flaky_bucket: FlakyBucket) -> None:
    names = [f"{index}.json" for index in range(30)]
    for name in names:
        write_bytes(f"{flaky_bucket.url}/{name}", name.encode())
    flaky_bucket.answer(seconds=2)
    assert read_folder(flaky_bucket.url, ".json") == {name: name.encode() for name in names}
    with flaky_bucket.refuse_connections(seconds=2):
        write_bytes(f"{flaky_bucket.url}/file", b"content")
    assert read_bytes(f"{flaky_bucket.url}/file") == b"content"


@pytest.mark.slow
def test_who_waits_for_a_bucket_is_told(flaky_bucket: FlakyBucket, caplog: pytest.LogCaptureFixture) -> None:
    flaky_bucket.answer(requests=WARN_AT)
    write_bytes(f"{flaky_bucket.url}/file", b"content")
    assert [record.getMessage() for record in caplog.records] == [
        f"{flaky_bucket.endpoint} does not answer (status 503): asking again"
    ]


@pytest.mark.parametrize(
    "fail",
    [lambda bucket: bucket.answer(503, "SlowDown", seconds=60), lambda bucket: bucket.drop_connections(seconds=60)],
    ids=["503", "dropped"],
)
def test_a_bucket_that_does_not_answer_at_all_is_named_after_all_attempts(
    flaky_bucket: FlakyBucket, monkeypatch: pytest.MonkeyPatch, fail: Callable[[FlakyBucket], None]
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    fail(flaky_bucket)
    message = refusal(write_bytes, f"{flaky_bucket.url}/file", b"content")
    assert f"{flaky_bucket.url}/file cannot be written: {flaky_bucket.endpoint} does not answer" in message
    assert 2 <= len(flaky_bucket.requests) <= 4  # aiohttp sends again by itself when a connection breaks


def test_an_address_where_nobody_listens_is_named(flaky_bucket: FlakyBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    message = refusal(write_bytes, f"{flaky_bucket.url}/file", b"content")
    assert "http://127.0.0.1:9 does not answer" in message and "AWS_ENDPOINT_URL" in message


@pytest.mark.parametrize(
    ("environment", "retries"),
    [
        ({}, {"mode": "standard", "total_max_attempts": ATTEMPTS}),
        ({"AWS_MAX_ATTEMPTS": "3"}, {"mode": "standard", "total_max_attempts": 3}),
        ({"AWS_RETRY_MODE": "adaptive"}, {"mode": "adaptive", "total_max_attempts": ATTEMPTS}),
        ({"AWS_RETRY_MODE": "legacy"}, {"mode": "legacy"}),
        ({"AWS_RETRY_MODE": "legacy", "AWS_MAX_ATTEMPTS": "7"}, {"mode": "legacy", "total_max_attempts": 7}),
    ],
)
def test_the_environment_decides_on_retries(
    bucket: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], retries: dict[str, Any]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    filesystem, path = filesystem_at(bucket)
    assert path == "bucket/prefix"
    assert filesystem.s3.meta.config.retries == retries


# --- what the user can repair -------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_keeps_nothing_of_the_file(small_disk: Path) -> None:
    write_bytes(small_disk / "small", b"x" * 2**19)
    message = refusal(write_bytes, small_disk / "large", b"x" * 2**20)
    assert f"{small_disk}/large cannot be written: no space left" in message
    assert file_sizes(str(small_disk)) == {"small": 2**19}
    write_bytes(small_disk / "last", b"x" * 2**19)


def test_a_disk_that_is_read_only_is_said(read_only_disk: Path) -> None:
    assert "read-only" in refusal(write_bytes, read_only_disk / "folder" / "file", b"content")
    assert file_sizes(str(read_only_disk)) == {}


def test_a_folder_of_somebody_else_is_said(tmp_path: Path) -> None:
    write_bytes(tmp_path / "folder" / "file", b"content")
    (tmp_path / "folder").chmod(0)
    with without_privileges():
        for function, *arguments in ((write_bytes, b"new"), (read_bytes,), (remove,)):
            message = refusal(function, tmp_path / "folder" / "file", *arguments)
            assert f"{tmp_path}/folder/file cannot be" in message and "permission denied" in message
        assert "permission denied" in refusal(file_sizes, str(tmp_path / "folder"))
    (tmp_path / "folder").chmod(0o700)
    assert read_bytes(tmp_path / "folder" / "file") == b"content"


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    write_bytes(tmp_path / "folder" / "file", b"content")
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "folder", b"content")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_bucket_that_does_not_exist_is_said(flaky_bucket: FlakyBucket) -> None:
    place = "s3://no-such-bucket/prefix/file"
    for function, *arguments in ((write_bytes, b"content"), (read_bytes,), (file_sizes,), (remove,)):
        message = refusal(function, place, *arguments)
        assert f"{place} cannot be" in message
        assert f"there is no bucket no-such-bucket at {flaky_bucket.endpoint}" in message
    message = refusal(require_writable, "s3://no-such-bucket/prefix")
    assert message.startswith("storage = s3://no-such-bucket/prefix: ") and "there is no bucket" in message


@pytest.mark.parametrize(
    ("key", "secret", "reason"),
    [
        ("user's", "user's", "AccessDenied"),
        ("user's", "wrong", "SignatureDoesNotMatch"),
        ("wrong", "wrong", "InvalidAccessKeyId"),
        (None, None, "Unable to locate credentials"),
    ],
)
def test_a_bucket_that_may_not_be_used_is_said(
    flaky_bucket: FlakyBucket, monkeypatch: pytest.MonkeyPatch, key: str | None, secret: str | None, reason: str
) -> None:
    write_bytes(f"{flaky_bucket.url}/file", b"content")
    act_as(new_user(), monkeypatch, key, secret)
    flaky_bucket.require_permission()
    for function, *arguments in ((write_bytes, b"new"), (read_bytes,), (file_sizes,), (remove,)):
        message = refusal(function, f"{flaky_bucket.url}/file", *arguments)
        assert f"{flaky_bucket.url}/file cannot be" in message and reason in message and "credentials" in message


def test_what_a_user_may_do_is_done_and_the_rest_is_said(
    flaky_bucket: FlakyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = new_user("s3:GetObject", "s3:ListBucket")
    write_bytes(f"{flaky_bucket.url}/file", b"content")
    act_as(reader, monkeypatch, "user's", "user's")
    flaky_bucket.require_permission()
    assert read_folder(flaky_bucket.url, "") == {"file": b"content"}
    for function, *arguments in ((write_bytes, b"new"), (remove,)):
        assert "AccessDenied" in refusal(function, f"{flaky_bucket.url}/file", *arguments)
    assert "AccessDenied" in refusal(require_writable, flaky_bucket.url)
    assert read_bytes(f"{flaky_bucket.url}/file") == b"content"


def new_user(*actions: str) -> dict[str, str]:
    """Return the access key of a new user who may do these things, and nothing else, in all buckets."""
    iam = boto3.client("iam")
    iam.create_user(UserName="user")
    if actions:
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="user", PolicyName="some", PolicyDocument=policy)
    return iam.create_access_key(UserName="user")["AccessKey"]


def act_as(user: dict[str, str], patch: pytest.MonkeyPatch, key: str | None, secret: str | None) -> None:
    """Set the environment of that user, for clients that are made from now on."""
    filesystem_at("s3://bucket")[0].clear_instance_cache()
    for name, value, right in (
        ("AWS_ACCESS_KEY_ID", key, user["AccessKeyId"]),
        ("AWS_SECRET_ACCESS_KEY", secret, user["SecretAccessKey"]),
    ):
        if value is None:
            patch.delenv(name)
        else:
            patch.setenv(name, right if value == "user's" else right[::-1])


@pytest.mark.slow
def test_what_the_user_can_repair_reaches_the_driver_from_a_worker_as_it_is(
    flaky_bucket: FlakyBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ray_cluster(num_cpus=1):
        tasks = [(f"{flaky_bucket.url}/file", b"content")]
        assert list(run_tasks(write_bytes, tasks, description="writing")) == [(0, None)]
        assert read_bytes(f"{flaky_bucket.url}/file") == b"content"
        lost = [("s3://no-such-bucket/prefix/file", b"content")]
        message = refusal(lambda: list(run_tasks(write_bytes, lost, description="writing")))
        assert message == refusal(write_bytes, *lost[0])
