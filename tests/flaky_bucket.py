"""An S3 server on this machine that fails on demand."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]  # of WSGI
ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>told to fail</Message></Error>"


class FlakyBucket:
    """An S3 server (moto's) behind a socket, with one empty bucket; its methods make the next requests fail.

    Attributes:
        url: address of a storage in the bucket.
        endpoint: URL of the server.
        environment: the variables by which processes find it, with a key of nobody's.
        requests: a line for each request so far, also for failed ones, such as "PUT /bucket/prefix/file".
    """

    url = "s3://bucket/prefix"

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.requests: list[str] = []
        self._s3 = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._faults: list[tuple[Callable[[str], bool], Application]] = []
        self._address = address
        self._listen(port=0)
        self.endpoint = f"http://{address}:{self._server.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._send("POST", "moto-api/reset")  # all servers of a process share their contents
        self._send("POST", "moto-api/reset-auth", "inf")
        self._send("PUT", "bucket")
        self.requests.clear()

    def answer(
        self, status: int = 503, code: str = "ServiceUnavailable", *, requests: int = 0, seconds: float = 0
    ) -> None:
        """Answer the next `requests`, or all of the next `seconds`, with an error."""
        body = ERROR.format(code=code).encode()

        def refuse(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} {code}", [("Content-Type", "application/xml")])
            return [body]

        self._fail(refuse, requests=requests, seconds=seconds)

    def drop_connections(self, *, requests: int = 0, seconds: float = 0) -> None:
        """Close the connections of the next `requests`, or of all of the next `seconds`, without an answer."""

        def drop(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError

        self._fail(drop, requests=requests, seconds=seconds)

    def answer_late(self, delay: float, *, requests: int = 0, seconds: float = 0) -> None:
        """Let the next `requests`, or all of the next `seconds`, wait for `delay` seconds."""

        def wait(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            time.sleep(delay)
            return self._s3(environ, start_response)

        self._fail(wait, requests=requests, seconds=seconds)

    def cut_downloads(self, requests: int) -> None:
        """Close the connections of the next GET requests in the middle of their content."""

        def cut(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
            content = b"".join(self._s3(environ, start_response))
            yield content[: len(content) // 2]
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

        self._fail(cut, requests=requests, method="GET")

    @contextmanager
    def half_an_upload(self) -> Iterator[threading.Event]:
        """Pause in the middle of the next PUT; the event is set when the server has half of its content.

        At the end of the block the server reads the other half, and the block ends when it has handled the request.
        """
        reached, go_on, handled = threading.Event(), threading.Event(), threading.Event()

        def hold(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            stream, half = environ["wsgi.input"], int(environ["CONTENT_LENGTH"]) // 2
            environ["wsgi.input"] = _Resumed(stream.read(half), stream)
            reached.set()
            go_on.wait()
            try:
                return self._s3(environ, start_response)
            finally:
                handled.set()

        self._fail(hold, requests=1, method="PUT")
        try:
            yield reached
        finally:
            go_on.set()
        assert handled.wait(30)

    def require_permission(self) -> None:
        """Require the key of a user with permission (IAM) for all later requests."""
        self._send("POST", "moto-api/reset-auth", "0")

    @contextmanager
    def refuse_connections(self, seconds: float) -> Iterator[None]:
        """Stop listening for some seconds; the end of the block waits until the server listens again."""
        self._stop()
        again = threading.Timer(seconds, self._listen, [self._server.server_port])
        again.start()
        try:
            yield
        finally:
            again.join()

    @contextmanager
    def restart_after(self, requests: int, text: str, *, seconds: float) -> Iterator[None]:
        """Restart the server when so many requests of the block contain a text; it is off for some seconds."""
        over = threading.Event()

        def restart() -> None:
            while sum(text in request for request in list(self.requests)) < requests:
                if over.wait(0.02):
                    return
            with self.refuse_connections(seconds):
                restarted.set()

        restarted = threading.Event()
        thread = threading.Thread(target=restart)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert restarted.is_set(), f"fewer than {requests} requests with {text}"

    def close(self) -> None:
        """Stop the server."""
        self._send("POST", "moto-api/reset-auth", "inf")
        self._stop()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _listen(self, port: int) -> None:
        self._server = make_server(self._address, port, self._application, threaded=True, request_handler=_Quiet)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _application(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path.startswith("/moto-api/"):  # not a request of S3, but a command to moto
            return self._s3(environ, start_response)
        with self._lock:
            self.requests.append(f"{method} {path}")
            respond = next((fail for applies, fail in self._faults if applies(method)), self._s3)
        return respond(environ, start_response)

    def _fail(self, fail: Application, requests: int = 0, seconds: float = 0, method: str = "") -> None:
        assert bool(requests) != bool(seconds), "one of the two"
        until, left = time.monotonic() + seconds, requests

        def applies(this: str) -> bool:
            nonlocal left
            if method not in ("", this):
                return False
            left -= 1
            return left >= 0 or time.monotonic() < until

        self._faults.append((applies, fail))

    def _send(self, method: str, path: str, value: str = "") -> None:
        headers = {"Content-Type": "text/plain"}  # otherwise the server expects a form
        request = urllib.request.Request(f"{self.endpoint}/{path}", value.encode(), headers, method=method)
        urllib.request.urlopen(request, timeout=10).close()


class _Quiet(MotoRequestHandler):
    def log(self, *arguments: Any) -> None:
        pass


class _Resumed:
    """A stream whose beginning has been read already."""

    def __init__(self, beginning: bytes, rest: Any):
        self._beginning, self._rest = beginning, rest

    def read(self, size: int = -1) -> bytes:
        beginning, self._beginning = self._beginning, b""
        return beginning or self._rest.read(size)
