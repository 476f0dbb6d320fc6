from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ghn.sampling import sample_architecture
from pipeline.architecture_store import ArchitectureStore
from pipeline.generate import generate, make_shard
from pipeline.params import SPLITS, Params

ROOT = Path(__file__).parents[2]
STORED = Path("storage/architectures")


def contents() -> dict[Path, bytes]:
    files = [*STORED.rglob("*.parquet"), Path("results/generate/manifest.json")]
    return {file: file.read_bytes() for file in files}


def identities(split: str) -> list[str]:
    return ArchitectureStore("storage")[split].columns("identity")["identity"].tolist()


def test_all_splits_are_there_distinct_and_disjoint(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    params = small_project()
    generate(params)
    store = ArchitectureStore("storage")
    assert {split: len(store[split]) for split in SPLITS} == params.generate.model_dump(include=set(SPLITS))
    drawn = [identity for split in SPLITS for identity in identities(split)]
    assert len(set(drawn)) == len(drawn)
    for wide, test in zip(store.networks("wide"), store.networks("test"), strict=False):
        assert wide == test.with_width(4 * test.C, test.fc_dim)
    assert store.networks("train")[7] == sample_architecture(0, "train", 7)
    assert not list(Path("storage").rglob(".*"))  # nothing half-written


def test_the_same_settings_give_the_same_files(ray_on_this_machine: None, small_project: Callable[..., Params]) -> None:
    params = small_project()
    generate(params)
    first = contents()
    for file in first:
        file.unlink()
    generate(params)
    assert contents() == first


def test_only_what_is_missing_or_damaged_is_written(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    params = small_project()
    generate(params)
    first = contents()
    missing, damaged = sorted(STORED.glob("train/*/*.parquet"))[:2]
    kept = {file: file.stat().st_mtime_ns for file in STORED.rglob("*.parquet") if file not in (missing, damaged)}
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:500])
    generate(params)
    assert contents() == first
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_split_that_grows_keeps_its_rows_and_leaves_the_others(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    generate(small_project())
    train = identities("train")
    others = {file: file.stat().st_mtime_ns for file in STORED.rglob("*.parquet") if file.parts[2] != "train"}
    generate(small_project(generate={"train": 17}))
    assert identities("train")[:12] == train
    assert len(identities("train")) == 17
    assert {file: file.stat().st_mtime_ns for file in others} == others


def test_another_seed_gives_other_architectures_beside_the_first(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    generate(small_project())
    first, files = identities("train"), {file for file in contents() if STORED in file.parents}
    generate(small_project(seed=1))
    assert not set(first) & set(identities("train"))
    assert all(file.exists() for file in files)


def test_an_architecture_that_is_taken_is_drawn_again_and_the_others_stay(tmp_path: Path) -> None:
    arguments = (str(tmp_path), "train", 0, 0, 4)
    _, first = make_shard(*arguments)
    assert make_shard(*arguments)[1] == first
    _, second = make_shard(*arguments, {2: {first[2]}})
    assert second[2] != first[2]
    assert [*second[:2], second[3]] == [*first[:2], first[3]]
    assert make_shard(*arguments)[1] == second


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_where_it_was(small_project: Callable[..., Params]) -> None:
    params = small_project(generate={"train": 600, "shard_rows": 20})
    code = "from pipeline import generate, params; generate.generate(params.load_params())"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(STORED.glob("train/*/*.parquet"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not Path("results/generate/manifest.json").exists()
    before = {file: file.stat().st_mtime_ns for file in STORED.rglob("*.parquet")}
    generate(params)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(identities("train")) == 600
