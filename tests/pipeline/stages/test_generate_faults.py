"""Stage `generate` where processes, shards and disks break: every run must end with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.architectures.splits import make_splits, store_architectures
from pipeline.architectures.store import ArchitectureStore, _checked_shard
from pipeline.errors import UserError
from pipeline.params import Params

SmallProject = Callable[..., Params]

COUNTS = {"train": 3000, "val": 3, "test": 20, "wide": 10, "deep": 3, "dense": 3, "bn_free": 3, "shard_rows": 250}


def contents(root: Path) -> dict[str, bytes]:
    """Return all shards and the manifest of a project, by name."""
    files = [*root.glob("storage/architectures/**/*"), root / "results/generate/manifest.json"]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture
def whole(small_project: SmallProject, tmp_path: Path, ray_on_this_machine: None) -> dict[str, bytes]:
    """Return what an undisturbed run writes; its project is the working directory, emptied again."""
    store_architectures(small_project(generate=COUNTS))
    expected = contents(tmp_path)
    for name in expected:
        (tmp_path / name).unlink()
    return expected


# Processes


@contextmanager
def in_background(root: Path) -> Iterator[subprocess.Popen]:
    """Run the stage in a process of its own, killed with all that it has started at the end of the block."""
    code = (
        "from pipeline.architectures.splits import store_architectures; from pipeline.params import load_params; "
        "store_architectures(load_params())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_drafts(root: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 1200
    while len(list(root.glob("storage/architectures/train/*-drafts/*.parquet"))) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_one_and_three_workers_and_a_run_of_two_that_is_killed_twice_write_the_same_bytes(
    small_project: SmallProject, tmp_path: Path
) -> None:
    written = {}
    for workers in (1, 3):
        root = tmp_path / f"{workers} workers"
        root.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            params = small_project(generate=COUNTS, cluster={"cpus": workers})
            store_architectures(params)
        written[workers] = contents(root)
    assert len(written[1]) == 2 * (12 + 6) + 1  # with their records
    assert written[1] == written[3]

    params = small_project(generate=COUNTS, cluster={"cpus": 2})
    for shards in (2, 7):
        with in_background(tmp_path) as process:
            wait_for_drafts(tmp_path, shards, process)
    assert not (tmp_path / "results/generate/manifest.json").exists()
    assert len(list(tmp_path.glob("storage/architectures/train/*-drafts/*.parquet"))) >= 7
    store_architectures(params)
    assert contents(tmp_path) == written[1]


def a_worker_at_work() -> int | None:
    """Return the process of a Ray task `sample_shard` on this machine."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if status.read_bytes().startswith(b"ray::sample_shard"):
                return int(status.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return None


def test_a_worker_that_is_killed_costs_its_shard_and_nothing_else(
    whole: dict[str, bytes], small_project: SmallProject, tmp_path: Path
) -> None:
    killed = []

    def kill_two() -> None:
        deadline = time.monotonic() + 30
        while len(killed) < 2 and time.monotonic() < deadline:
            if (process := a_worker_at_work()) is not None and process not in killed:
                time.sleep(0.05)  # in the middle of a shard
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_two)
    killer.start()
    store_architectures(small_project(generate=COUNTS))
    killer.join()
    assert len(killed) == 2
    assert contents(tmp_path) == whole


# Shards


def missing(file: Path) -> None:
    file.unlink()


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    file.write_bytes(content)


def exchanged(file: Path) -> None:
    """Whole, but with the rows of another shard."""
    other = max(path for path in file.parent.glob("*.parquet") if path != file)
    file.write_bytes(other.read_bytes())


def exchanged_with_its_record(file: Path) -> None:
    exchanged(file)
    records = file.parent / "records"
    other = max(path for path in records.iterdir() if path.stem != file.name)
    (records / f"{file.name}.json").write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [missing, truncated, flipped, exchanged, exchanged_with_its_record])
def test_a_damaged_shard_is_named_when_it_is_read_and_written_again(
    damage: Callable[[Path], None],
    ray_on_this_machine: None,
    small_project: SmallProject,
    tmp_path: Path,
) -> None:
    params = small_project(generate={**COUNTS, "train": 1000})
    store_architectures(params)
    before = contents(tmp_path)
    shard = next(tmp_path.glob("storage/architectures/train/*/00000250-*.parquet"))
    damage(shard)
    _checked_shard.cache_clear()  # as in a process that has read nothing yet
    with pytest.raises(UserError, match=r"00000250-00000500\.parquet is (missing|damaged)"):
        ArchitectureStore("storage")["train"].read(300)
    store_architectures(params)
    assert contents(tmp_path) == before


# Disks


def test_a_full_disk_is_named_and_no_half_of_a_shard_is_left(
    ray_on_this_machine: None, small_project: SmallProject, small_disk: Path
) -> None:
    with (small_disk / "filler").open("wb") as filler:
        filler.write(bytes(small_disk_left(small_disk) - 60_000))
    params = small_project(generate=COUNTS, storage=str(small_disk))
    with pytest.raises(UserError, match="no space left on device") as caught:
        make_splits(params)
    assert len(str(caught.value).splitlines()) <= 3
    assert str(small_disk) in str(caught.value)
    assert not list(small_disk.rglob(".*"))
    (small_disk / "filler").unlink()
    splits = make_splits(params)
    assert sum(shard.rows for shard in splits["train"][1]) == COUNTS["train"]


def small_disk_left(disk: Path) -> int:
    left = os.statvfs(disk)
    return left.f_bavail * left.f_bsize
