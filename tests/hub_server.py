"""A server on this machine that speaks as much of the hub's protocol as up- and downloads of small files need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer:
    """Repositories in memory, served at `endpoint`; files above `LARGE` bytes are named by their SHA-256."""

    LARGE = 10_000

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                parts = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", unquote(urlsplit(self.path).path))
                if parts is None:
                    return self.answer(404, b"{}")
                repository, revision, name = parts.groups()
                files = hub.repositories.get(repository)
                if files is None:
                    return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                if revision not in ("main", COMMIT):
                    return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                if name not in files:
                    return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                content = files[name]
                is_large = len(content) > hub.LARGE
                etag = hashlib.sha256(content).hexdigest() if is_large else git_hash(content)
                self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                path = urlsplit(self.path).path
                if path == "/api/repos/create":
                    wanted = json.loads(body)
                    repository = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
                    hub.repositories.setdefault(repository, {})
                    return self.answer(200, json.dumps({"url": f"{hub.endpoint}/{repository}"}).encode())
                if path == "/api/validate-yaml":
                    return self.answer(200, b'{"errors": [], "warnings": []}')
                if path.endswith("/preupload/main"):
                    files = [
                        {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
                    ]
                    return self.answer(200, json.dumps({"files": files}).encode())
                if path.endswith("/commit/main"):
                    repository = path.removeprefix("/api/models/").removesuffix("/commit/main")
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            content = base64.b64decode(line["value"]["content"])
                            hub.repositories[repository][line["value"]["path"]] = content
                    answer = {"commitUrl": f"{hub.endpoint}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
                    return self.answer(200, json.dumps(answer | {"hookOutput": "", "success": True}).encode())
                self.answer(404, b"{}")

            def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @classmethod
    @contextmanager
    def in_place_of_the_hub(cls, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
        """Yield a server that huggingface_hub, which has read its address at its import, takes for the hub.

        Args:
            cache: an empty folder for downloads.
        """
        server = cls()
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        try:
            yield server
        finally:
            server.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
