"""Repositories of tests: this one with small settings, as a user has it who cloned it, and one of a single stage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from small_settings import ROOT, small_settings


def copy_repository(folder: Path, **changes: Any) -> None:
    """Copy all but tests and results into a folder, and commit it there with small settings.

    Args:
        changes: of the small settings, whole keys or keys in sections.
    """
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "results/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(small_settings(**changes)))
    for command in (
        ("init", "--quiet"),
        ("config", "user.email", "reader@example.org"),
        ("config", "user.name", "Reader"),
        ("add", "--all"),
        ("commit", "--quiet", "--message", "begin"),
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)


def make_one_stage(folder: Path, program: str, settings: dict[str, Any]) -> None:
    """Make a repository of git and DVC, whose stage `show` runs a program that depends on all settings."""
    (folder / "stage.py").write_text(program)
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    stage = {"cmd": "python stage.py", "deps": ["stage.py"], "params": sorted(settings)}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"show": stage}}))
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
