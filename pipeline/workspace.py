"""The user's repository: its folder, and its state in git."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CODE = (":/*.py", ":/dvc.yaml", ":/pyproject.toml")
"""Pathspecs of git for the code. Settings are not code: they are logged as parameters."""


def workspace() -> Path:
    """Return the root of the user's repository: the original, inside the temporary copy of a DVC experiment too."""
    start = Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()
    folders = (start, *start.parents)
    for folder in folders:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    for folder in folders:
        if any((folder / mark).exists() for mark in (".dvc", ".git", "params.yaml")):
            return folder
    return start


def git(*arguments: str) -> str | None:
    """Return the output of git in the current folder (of a DVC copy: its own); None without git or a repository."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
