"""A project of a user, and an MLflow server over its store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import TrackingServer
from user_project import git


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SQLite file with MLflow's tables, because their creation takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a user's repository with one commit and an empty store, the current folder."""
    folder = tmp_path / "my project"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    (folder / "params.yaml").write_text("seed: 7\n")
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "params.yaml", "code.py")
    git(folder, "commit", "--quiet", "-m", "first")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tracking_server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackingServer]:
    """Start a server over the project's store, which the environment names."""
    server = TrackingServer(project)
    try:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield server
    finally:
        server.stop()
