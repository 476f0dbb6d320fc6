"""Fixtures: made-up results of a run, and disks that fail."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from example_results import make_results


@pytest.fixture(scope="session")
def results_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("run") / "results")


@pytest.fixture
def results(results_of_a_run: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(results_of_a_run, tmp_path / "results"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on an empty disk of 1 MiB."""
    with mounted_disk(tmp_path, "size=1m") as folder:
        yield folder


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a disk that cannot be written."""
    with mounted_disk(tmp_path, "size=1m,ro") as folder:
        yield folder


@contextmanager
def mounted_disk(folder: Path, options: str) -> Iterator[Path]:
    """Yield a folder on a disk in memory with these options of `mount`. Skip the test if none can be mounted.

    The disk is mounted in a name space of its own, for which user name spaces or root are enough; `/proc` leads there.
    It is gone after the block, or with this process.
    """
    (folder / "disk").mkdir()
    mount = ["sh", "-c", 'mount -t tmpfs -o "$0" tmpfs "$1" && echo mounted && read line', options, folder / "disk"]
    complaints = []
    for own_name_space in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        try:
            keeper = subprocess.Popen([*own_name_space, *mount], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        except FileNotFoundError as error:
            pytest.skip(f"no disk can be mounted: {error}")
        with keeper:
            if keeper.stdout.readline() == "mounted\n":
                yield Path(f"/proc/{keeper.pid}/root{folder}/disk")
                return
            complaints.append(keeper.stderr.read().strip())
    pytest.skip(f"no disk can be mounted: {'; '.join(complaints)}")
