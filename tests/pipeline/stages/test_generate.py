from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ghn.deepnets1m.sampling import SPLIT_RULES, SplitRules, sample_architecture, samples
from ghn.networks.sample import HASH_BUCKETS
from pipeline.architectures.sampled_splits import (
    Task,
    finish_shard,
    resample_repeats,
    sample_shard,
    sample_splits,
    shard_tasks,
)
from pipeline.architectures.shards import SCHEMA, row, table_of, write_shard
from pipeline.architectures.splits import store_architectures
from pipeline.architectures.store import ArchitectureStore, Split, write_manifest
from pipeline.errors import UserError
from pipeline.params import SPLITS, Params
from pipeline.stages.describe import describe
from pipeline.stages.generate import generate
from pipeline.storage.files import write_bytes
from pipeline.tracking.mlflow_runs import tracking_uri

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
    store_architectures(params)
    store = ArchitectureStore("storage")
    assert {split: len(store[split]) for split in SPLITS} == params.generate.model_dump(include=set(SPLITS))
    stored = [identity for split in SPLITS for identity in identities(split)]
    assert len(set(stored)) == len(stored)
    for wide, test in zip(store.networks("wide"), store.networks("test"), strict=False):
        assert wide == test.with_width(4 * test.C, test.fc_dim)
    assert store.networks("train")[7] == sample_architecture(0, "train", 7)
    assert not list(Path("storage").rglob(".*"))  # nothing half-written


@pytest.mark.slow
def test_the_stage_prints_and_logs_how_many_architectures_there_are_and_another_one_leaves_a_page(
    ray_on_this_machine: None, small_project: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    params = small_project()
    generate(params)
    assert re.search(r"train\s*│\s*12 │", capsys.readouterr().out)
    assert [file.name for file in Path("results/generate").iterdir()] == ["manifest.json"]
    describe(params)
    report = Path("results/generate/report")
    assert capsys.readouterr().out.strip() == str(report / "index.html")
    assert {file.name for file in report.iterdir()} >= {"index.html", "statistics.md", "distributions.png"}
    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name("ghn")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["generate"].data.metrics["architectures_train"] == 12
    artifacts = {
        stage: {file.path for file in client.list_artifacts(runs[stage].info.run_id)}
        for stage in ("generate", "describe")
    }
    assert artifacts == {"generate": {"manifest.json"}, "describe": {"report", "tables"}}


def test_a_page_about_architectures_that_are_not_there_is_refused(small_project: Callable[..., Params]) -> None:
    with pytest.raises(UserError, match="dvc repro generate"):
        describe(small_project())
    assert not Path("results/generate/report").exists()


def test_the_same_settings_give_the_same_files(ray_on_this_machine: None, small_project: Callable[..., Params]) -> None:
    params = small_project()
    store_architectures(params)
    first = contents()
    for file in first:
        file.unlink()
    store_architectures(params)
    assert contents() == first


def test_only_what_is_missing_or_damaged_is_written(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    params = small_project()
    store_architectures(params)
    first = contents()
    missing, damaged = sorted(STORED.glob("train/*/*.parquet"))[:2]
    kept = {file: file.stat().st_mtime_ns for file in STORED.rglob("*.parquet") if file not in (missing, damaged)}
    missing.unlink()
    damaged.write_bytes(damaged.read_bytes()[:500])
    store_architectures(params)
    assert contents() == first
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_split_that_grows_keeps_its_rows_and_leaves_the_others(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    store_architectures(small_project())
    train = identities("train")
    others = {file: file.stat().st_mtime_ns for file in STORED.rglob("*.parquet") if file.parts[2] != "train"}
    store_architectures(small_project(generate={"train": 17}))
    assert identities("train")[:12] == train
    assert len(identities("train")) == 17
    assert {file: file.stat().st_mtime_ns for file in others} == others


def test_another_seed_gives_other_architectures_beside_the_first(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    store_architectures(small_project())
    first, files = identities("train"), {file for file in contents() if STORED in file.parents}
    store_architectures(small_project(seed=1))
    assert not set(first) & set(identities("train"))
    assert all(file.exists() for file in files)


def test_what_is_imported_is_not_sampled_for_another_split(
    ray_on_this_machine: None, small_project: Callable[..., Params]
) -> None:
    store_architectures(small_project())
    before = identities("test")
    networks = ArchitectureStore("storage").networks("test")
    shard = write_shard("storage/import/0.parquet", table_of([row(0, networks[1])]))
    write_manifest("storage/import/manifest.json", {"train": ("import", [shard])})
    store_architectures(small_project(generate={"imported": {"train": "import/manifest.json"}}, sgd={"sources": 1}))
    after = identities("test")
    assert identities("train") == [before[1]]
    assert [after[0], after[2]] == [before[0], before[2]]
    assert after[1] not in before
    assert ArchitectureStore("storage")["test"].columns("draw")["draw"].tolist() == [0, 1, 0]


def make_split(folder: str, count: int, shard_rows: int, finish: int | None = None) -> Split:
    """Split train, made in this process; only so many of the shards are finished."""
    seen: set[str] = set()
    shards = []
    for task in shard_tasks(folder, "train", 0, count, shard_rows):
        shard, identities = sample_shard(task)
        rows = resample_repeats(task, identities.to_pylist(), seen)
        if shard is None and finish != 0:
            shard = finish_shard(task, table_of(rows))
            finish = None if finish is None else finish - 1
        shards.append(shard)
    return Split("train", folder, [shard for shard in shards if shard])


def test_a_split_that_grows_by_far_keeps_its_first_rows_to_the_last_column(
    ray_on_this_machine: None, tmp_path: Path
) -> None:
    tables = []
    for count, shard_rows in ((200, 64), (2000, 512)):
        folder = f"{tmp_path}/{count}"
        shards = sample_splits({"train": shard_tasks(folder, "train", 7, count, shard_rows)})["train"]
        tables.append(Split("train", folder, shards).table(*SCHEMA.names))
    assert tables[1].slice(0, 200).equals(tables[0])


@pytest.fixture
def few_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split train samples so few different networks that a quarter repeats others."""
    monkeypatch.setattr("ghn.deepnets1m.sampling.OPERATIONS", ("none", "conv_1x1"))
    monkeypatch.setattr("ghn.deepnets1m.sampling.PARAMETER_FREE", ("none", "skip_connect"))
    rules = SplitRules(hash_buckets=tuple(range(HASH_BUCKETS)), cells=(4, 5), states=(1, 1), states_if_deep=(1, 1))
    monkeypatch.setitem(SPLIT_RULES, "train", rules)


def test_each_row_is_the_first_sample_of_its_stream_that_no_row_before_it_has(
    few_networks: None, tmp_path: Path
) -> None:
    expected: list[tuple[int, str, int]] = []
    seen: set[str] = set()
    for index in range(200):
        stream = enumerate(sample.summary.network_hash for sample in samples(0, "train", index))
        number, identity = next((n, identity) for n, identity in stream if identity not in seen)
        seen.add(identity)
        expected.append((index, identity, number))
    assert sum(number > 0 for _, _, number in expected) > 40
    for shard_rows in (200, 64, 1):
        columns = make_split(f"{tmp_path}/{shard_rows}", 200, shard_rows).columns("index", "identity", "draw")
        assert list(zip(*(column.tolist() for column in columns.values()), strict=True)) == expected


def test_a_stage_that_was_killed_between_its_two_passes_ends_with_the_same_files(
    few_networks: None, tmp_path: Path
) -> None:
    for name, finished in (("drafts", 0), ("some finished", 2), ("undisturbed", None)):
        make_split(f"{tmp_path}/{name}", 200, 50, finished)
        make_split(f"{tmp_path}/{name}", 200, 50)
    folders = [tmp_path / name for name in ("drafts", "some finished", "undisturbed")]
    files = [[file.read_bytes() for file in sorted(folder.glob("*.parquet"))] for folder in folders]
    assert files[0] == files[1] == files[2]


def test_a_writer_that_comes_too_late_changes_nothing(few_networks: None, tmp_path: Path) -> None:
    """A worker that was given up as lost, and finds no shard before the others have finished it."""
    tasks = shard_tasks(f"{tmp_path}/train", "train", 0, 200, 50)
    assert all(sample_shard(task)[0] is None for task in tasks)
    drafts = {task: Path(task.draft).read_bytes() for task in tasks}
    finished = make_split(f"{tmp_path}/train", 200, 50)
    contents = {task: Path(task.place).read_bytes() for task in tasks}
    assert sum(contents[task] != drafts[task] for task in tasks) > 2
    for task, draft in drafts.items():
        Path(task.draft).write_bytes(draft)
    assert tuple(sample_shard(task)[0] for task in tasks) == finished.shards
    assert make_split(f"{tmp_path}/train", 200, 50).shards == finished.shards
    assert {task: Path(task.place).read_bytes() for task in tasks} == contents


def record_of(place: str) -> Path:
    return Path(place).parent / "records" / f"{Path(place).name}.json"


@pytest.mark.parametrize("with_record", [False, True])
@pytest.mark.parametrize("other", [Task("", "train", 1, 0, 5), Task("", "test", 0, 0, 5)], ids=["seed", "split"])
def test_a_shard_of_another_seed_or_split_is_not_taken(tmp_path: Path, other: Task, with_record: bool) -> None:
    task = Task(f"{tmp_path}/train", "train", 0, 0, 5)
    foreign = other._replace(folder=f"{tmp_path}/other")
    sample_shard(foreign)
    finish_shard(foreign, table_of([]))
    for place, source in ((task.place, foreign.place), (task.draft, foreign.draft)):
        write_bytes(place, Path(source).read_bytes())
        if with_record:
            write_bytes(record_of(place), record_of(source).read_bytes())
    shard, identities = sample_shard(task)
    assert shard is None
    assert identities.to_pylist() == [next(samples(0, "train", index)).summary.network_hash for index in range(5)]


def test_a_shard_of_other_settings_is_not_taken_with_its_record(tmp_path: Path) -> None:
    task = Task(f"{tmp_path}/settings", "train", 0, 0, 5)
    foreign = task._replace(folder=f"{tmp_path}/other settings")
    sample_shard(foreign)
    finish_shard(foreign, table_of([]))
    shutil.copytree(foreign.folder, task.folder)
    assert sample_shard(foreign)[0] is not None
    assert sample_shard(task)[0] is None


def test_a_shard_of_a_version_without_records_is_taken_and_recorded(tmp_path: Path) -> None:
    (task,) = shard_tasks(f"{tmp_path}/train", "train", 0, 5, 5)
    sample_shard(task)
    shard = finish_shard(task, table_of([]))
    record_of(task.place).unlink()
    assert sample_shard(task)[0] == shard
    assert record_of(task.place).exists()
    record_of(task.place).write_text("{")
    assert sample_shard(task)[0] is None


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_where_it_was(small_project: Callable[..., Params]) -> None:
    params = small_project(generate={"train": 600, "shard_rows": 20})
    code = (
        "from pipeline.architectures.splits import store_architectures; from pipeline.params import load_params; "
        "store_architectures(load_params())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(STORED.glob("train/*-drafts/*.parquet"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not Path("results/generate/manifest.json").exists()
    assert list(STORED.glob("train/*-drafts/*.parquet"))
    store_architectures(params)
    assert len(identities("train")) == 600
    assert not list(STORED.glob("*/*-drafts"))


def test_what_is_there_is_not_sampled_again(tmp_path: Path) -> None:
    first, second, third = shard_tasks(f"{tmp_path}/train", "train", 0, 15, 5)
    sample_shard(first)
    finish_shard(first, table_of([]))
    sample_shard(second)
    written = {place: Path(place).stat().st_mtime_ns for place in (first.place, second.draft)}
    found = [sample_shard(task) for task in (first, second, third)]
    assert [shard is None for shard, _ in found] == [False, True, True]
    assert {place: Path(place).stat().st_mtime_ns for place in written} == written
