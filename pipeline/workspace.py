"""The user's repository: its folder, and its state in git."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

CODE = (":/*.py", ":/dvc.yaml", ":/pyproject.toml")
"""Pathspecs of git for the code. Settings are not code: they are logged as parameters."""

NO_SCM = re.compile(r"^\s*no_scm\s*=\s*true\s*$", re.IGNORECASE | re.MULTILINE)
"""The line of DVC's configuration that says that there is no git."""


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


def from_workspace(path: str) -> Path:
    """Return a path of the settings: `~` is the home, and a relative path is meant from the workspace."""
    return workspace() / Path(path).expanduser()


def git(*arguments: str) -> str | None:
    """Return the output of git in the current folder (of a DVC copy: its own); None where git does not answer."""
    done = _run_git(*arguments)
    return done.stdout.strip() if done is not None and done.returncode == 0 else None


def commit_and_changes(*pathspecs: str) -> tuple[str | None, str | None]:
    """Return the commit of the current folder, and the lines of `git status` for some files.

    Both are None where there is no git, no repository, one that belongs to another user, or no commit in it.
    """
    commit = git("rev-parse", "HEAD")
    return commit, None if commit is None else git("status", "--porcelain", "--", *pathspecs)


def scm_hint() -> str | None:
    """Return what to do where DVC or the record of a run lacks git; None if nothing is amiss."""
    root = workspace()
    done = _run_git("rev-parse", "--git-dir")
    if done is None or done.returncode == 0:
        reason = "git is not installed" if done is None else None
    elif "dubious ownership" in done.stderr:
        return (
            f"git refuses {root}, which belongs to another user, so the commit of a run is unknown: "
            f"`git config --global --add safe.directory {root}` accepts it"
        )
    else:
        reason = f"{root} is not in a git repository"
    if reason is None or _is_without_scm(root):
        return None
    command = "dvc config core.no_scm true" if (root / ".dvc").is_dir() else "dvc init --no-scm"
    return f"{reason}: DVC runs there after `{command}`"


def _is_without_scm(root: Path) -> bool:
    """Return whether the configuration of DVC says that there is no git."""
    files = [root / ".dvc" / name for name in ("config", "config.local")]
    return any(file.is_file() and NO_SCM.search(file.read_text()) for file in files)


def _run_git(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Run git; return None if it is not installed."""
    if shutil.which("git") is None:
        return None
    return subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace")
