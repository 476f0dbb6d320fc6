"""Results of a run, made up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from example_results import make_results


@pytest.fixture(scope="session")
def results_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("run") / "results")


@pytest.fixture
def results(results_of_a_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(results_of_a_run, tmp_path / "results"))
