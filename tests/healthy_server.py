"""Waiting for an MLflow server that has been started."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request


def wait_until_healthy(address: str, process: subprocess.Popen, log: str) -> None:
    """Return when the server answers; fail if its process has ended. `log` names what it has printed."""
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, f"the MLflow server ended: see {log}"
            time.sleep(0.5)
