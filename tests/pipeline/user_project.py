"""A user's project: its git, and the environment of its processes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from small_settings import ROOT


def environment(**more: str) -> dict[str, str]:
    """Return variables for processes: the code of this repository, no settings that decide where runs go."""
    ours = ("DVC_", "MLFLOW_", "GIT_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return inherited | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"} | more


def git(folder: Path, *arguments: str) -> str:
    """Return the output of git."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    command = ("git", *identity, *arguments)
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
