"""Passwords: in no message, log or file, whatever component has the address."""

from __future__ import annotations

import base64
import http.client
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from mlflow_server import TrackingServer
from user_project import environment

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.secrets import hidden, hide_in_output, without_user_info
from pipeline.stages.check import check
from pipeline.tracking.journal import Journal

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

PASSWORD = "not-for-others"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://somebody:not-for-others@host:5000/path", "http://***@host:5000/path"),
        ("https://not-for-others@example.org/repository.git", "https://***@example.org/repository.git"),
        ("postgresql+psycopg2://user:not/for?others@host/name", "postgresql+psycopg2://***@host/name"),
        ("mysql://host/name?user=u&password=not-for-others&ssl=1", "mysql://host/name?user=u&password=***&ssl=1"),
        ("https://b.s3.org/k?X-Amz-Signature=123&x=1 and more", "https://b.s3.org/k?X-Amz-Signature=***&x=1 and more"),
        ("('http://a:b@c', 'http://d:e@f')", "('http://***@c', 'http://***@f')"),
        ("s3://bucket/photos@home/1.png", "s3://bucket/photos@home/1.png"),
        ("http://127.0.0.1:5000/user@example.org", "http://127.0.0.1:5000/user@example.org"),
    ],
)
def test_users_and_passwords_of_addresses_are_hidden_and_nothing_else(text: str, expected: str) -> None:
    assert hidden(text) == expected


def test_an_address_without_its_password_is_still_an_address() -> None:
    assert without_user_info("http://somebody:not-for-others@host:5000") == "http://host:5000"
    assert without_user_info("http://host:5000") == "http://host:5000"


def test_the_secrets_of_the_environment_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/secret+key")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:pass%2Fword@host/name")
    assert hidden("invalid port: 'pass/word', pass%2Fword; key a/secret+key") == "invalid port: '***', ***; key ***"


def test_a_secret_as_short_as_a_word_is_not_looked_for_in_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert hidden("a test of http://user:test@host") == "a test of http://***@host"


@pytest.fixture
def hooks() -> Iterator[None]:
    """Put back the hooks of this process after a test."""
    before = logging.getLogRecordFactory(), sys.excepthook, threading.excepthook
    yield
    logging.setLogRecordFactory(before[0])
    sys.excepthook, threading.excepthook = before[1:]


def test_what_other_packages_log_has_no_password(hooks: None, caplog: pytest.LogCaptureFixture) -> None:
    hide_in_output()
    hide_in_output()
    logger = logging.getLogger("another.package")
    logger.warning("Retrying %s", f"http://somebody:{PASSWORD}@host")
    try:
        raise ValueError(f"http://somebody:{PASSWORD}@host")
    except ValueError:
        logger.exception("failed")
    logger.warning("a wrong call: 100%, %s")
    logger.warning("100%")
    assert PASSWORD not in caplog.text
    assert "Retrying http://***@host" in caplog.text and "ValueError: http://***@host" in caplog.text
    assert "a wrong call: 100%, %s" in caplog.text


CRASH = """
import threading
from pipeline.cli import exits_on_user_error

def fail(): raise ValueError("http://somebody:not-for-others@host")

@exits_on_user_error
def command():
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    fail()

command()
"""


def test_tracebacks_of_a_command_have_no_password() -> None:
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert done.stderr.count("ValueError: http://***@host") == 2
    assert PASSWORD not in done.stderr.replace('raise ValueError("http', "")


def test_the_outbox_on_disk_has_no_password_and_is_delivered_with_that_of_the_environment(
    small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_project()
    address = f"http://somebody:{PASSWORD}@127.0.0.1:9"
    journal = Journal.create("a1", "train", address)
    assert PASSWORD not in (journal.folder / "store.json").read_text()
    assert journal.uri == "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert journal.uri == address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:else@127.0.0.1:10")
    assert journal.uri == "http://127.0.0.1:9"


# Stores that do not answer


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://somebody:not-for-others@127.0.0.1:9", "Connection refused"),
        ("http://somebody:not-for-others@no-such-host.invalid", "resolve"),
        ("postgresql://somebody:not-for-others@127.0.0.1:9/mlflow", "the package psycopg"),
        ("sqlserver://somebody:not-for-others@127.0.0.1:9/mlflow", ""),
        ("http://somebody:not-for/others@127.0.0.1:9", ""),
    ],
)
def test_check_says_within_seconds_that_the_store_does_not_answer_and_no_password(
    address: str, reason: str, small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reason in refusal_of_store(address, small_project(), monkeypatch)


def test_a_server_that_takes_the_question_and_never_answers_is_given_up_within_seconds(
    small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://somebody:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}"
        assert "timed out" in refusal_of_store(address, small_project(), monkeypatch)


def refusal_of_store(address: str, params: Params, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what stage `check` says of a store; it must not take long, nor show the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    import mlflow  # noqa: F401  # takes seconds that are not those of the question

    started = time.monotonic()
    with pytest.raises(UserError, match="MLflow cannot use its store") as caught:
        check(params)
    assert time.monotonic() - started < 30
    assert "others" not in str(caught.value)
    assert not Path("results/check/passed").exists()
    return str(caught.value)


# A stage with real components


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[str]:
    """Start an MLflow server behind a gate that asks for a user and a password; yield the address with both."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = TrackingServer(folder)
    expected = f"Basic {base64.b64encode(f'somebody:{PASSWORD}'.encode()).decode()}"

    class Gate(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != expected:
                self.send_error(401)
                return
            inner = http.client.HTTPConnection("127.0.0.1", server.port)
            headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Authorization")}
            inner.request(self.command, self.path, body, headers)
            answer = inner.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *arguments: object) -> None:
            pass

    try:
        server.start()
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate) as gate:
            threading.Thread(target=gate.serve_forever, daemon=True).start()
            yield f"http://somebody:{PASSWORD}@127.0.0.1:{gate.server_port}"
            gate.shutdown()
    finally:
        server.stop()


def files_with(secret: str, *folders: Path) -> list[Path]:
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes()
    ]


@pytest.mark.slow
def test_nothing_that_a_stage_leaves_anywhere_has_a_password(
    small_project: Callable[..., Params],
    flaky_bucket: FlakyBucket,
    guarded_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_project(storage=flaky_bucket.url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded_server)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"aws-{PASSWORD}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")

    def ghn(stage: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline.cli", stage]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | more)

    with TemporaryDirectory(dir="/tmp") as scratch:  # short, because Ray makes sockets in it
        monkeypatch.setenv("TMPDIR", scratch)
        done = [ghn("check"), ghn("generate")]
        assert [each.returncode for each in done] == [0, 0], done[-1].stderr
        endpoint = flaky_bucket.endpoint.replace("//", f"//somebody:{PASSWORD}@")
        done.append(ghn("check", AWS_ENDPOINT_URL=endpoint))
        assert "AWS_ENDPOINT_URL = http://***@127.0.0.1" in done[-1].stderr
        done.append(ghn("generate", MLFLOW_TRACKING_URI=f"http://somebody:{PASSWORD}@127.0.0.1:9"))
        assert done[-2].returncode == done[-1].returncode == 1
        assert list(Path(scratch).glob("ray/session_*/logs/*"))
        assert files_with(PASSWORD, tmp_path, Path(scratch)) == []
    printed = "".join(each.stdout + each.stderr for each in done)
    assert [line for line in printed.splitlines() if PASSWORD in line] == []
    assert all(PASSWORD.encode() not in content for content in contents_of(flaky_bucket))


def contents_of(flaky_bucket: FlakyBucket) -> list[bytes]:
    """Return the contents of all objects."""
    import boto3

    bucket = boto3.resource("s3", endpoint_url=flaky_bucket.endpoint).Bucket("bucket")
    contents = [each.get()["Body"].read() for each in bucket.objects.all()]
    assert contents
    return contents
