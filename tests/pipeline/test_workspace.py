"""The user's repository: what is known of it where git does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_settings import ROOT
from user_project import environment, git

from pipeline.reporting.page import git_state
from pipeline.workspace import commit_and_changes, scm_hint

UNKNOWN = "unknown: not in a git repository with a commit that git may read"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with one commit, the current folder."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def test_a_clean_commit_is_known(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert commit_and_changes("*.py") == (commit, "")
    assert git_state() == f"git {commit[:12]}, clean"
    assert scm_hint() is None


def test_changes_are_known(repository: Path) -> None:
    (repository / "code.py").write_text("x = 2\n")
    assert commit_and_changes("*.py")[1] == "M code.py"
    assert "with uncommitted changes in code.py" in git_state()


def test_a_repository_of_another_user_is_unknown_and_the_hint_names_the_command(repository: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder to another user")
    os.chown(repository, 12345, 12345)
    assert commit_and_changes("*.py") == (None, None)
    assert git_state() == UNKNOWN
    assert f"`git config --global --add safe.directory {repository}` accepts it" in scm_hint()


def test_a_repository_without_a_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").touch()
    assert commit_and_changes("*.py") == (None, None)
    assert git_state() == UNKNOWN


def test_without_a_repository_the_hint_says_how_dvc_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("params.yaml").touch()
    assert commit_and_changes("*.py") == (None, None)
    assert git_state() == UNKNOWN
    assert scm_hint() == f"{tmp_path} is not in a git repository: DVC runs there after `dvc init --no-scm`"
    Path(".dvc").mkdir()
    assert scm_hint().endswith("`dvc config core.no_scm true`")
    Path(".dvc/config").write_text("[core]\n    no_scm = True\n")
    assert scm_hint() is None


def test_without_git_on_the_machine_the_commit_is_unknown(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert commit_and_changes("*.py") == (None, None)
    assert git_state() == UNKNOWN
    assert scm_hint().startswith("git is not installed: DVC runs there after")


@pytest.mark.slow
def test_an_unpacked_archive_runs_after_the_command_of_the_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        variables = environment(PATH=path, DVC_NO_ANALYTICS="1", PYTHONPATH=str(tmp_path))
        return subprocess.run(command, capture_output=True, text=True, env=variables)

    assert "is not a git repository" in run("dvc", "repro", "check").stderr
    checked = run(sys.executable, "-m", "pipeline.cli", "check")
    assert checked.returncode == 0, checked.stderr
    assert "is not in a git repository: DVC runs there after `dvc config core.no_scm true`" in checked.stderr
    made = run("make", "repro", f"BIN={Path(sys.executable).parent}", "READY=params.yaml")
    assert made.returncode != 0
    assert "DVC runs there after `dvc config core.no_scm true`" in made.stdout
    assert run("dvc", "config", "core.no_scm", "true").returncode == 0
    done = run("dvc", "repro", "check")
    assert done.returncode == 0, done.stderr
    assert "not in a git repository" not in done.stderr
