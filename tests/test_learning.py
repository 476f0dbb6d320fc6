"""The race of learners and what is shown of it: the leaderboard, its document, the README's table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import yaml
from leaderboard_examples import TOP1, a_row, a_seed
from ray_for_processes import ray_for_processes
from small_settings import ROOT, small_settings

from pipeline.errors import UserError
from pipeline.params import flat_settings
from pipeline.reporting.leaderboard import (
    LEADERBOARD,
    LeaderboardRow,
    leaderboard_json,
    mean_and_error,
    read_leaderboard,
    shown_row,
)
from pipeline.reporting.seeds_section import seeds_markdown
from pipeline.storage.tables import write_csv, write_json, write_parquet

README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def learning() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import learning

    return learning


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return what the stages wrote in 35 steps of 6 seconds, most rows of the history being means of ten of them."""
    results = tmp_path / "results"
    history = {"step": [10, 20, 30, 35], "step_seconds": 6.0, "val_top1": [None, 0.65, 0.62, 0.75]}
    write_csv(results / "train/history.csv", pd.DataFrame(history))
    summary = {"split": list(TOP1), "predicted_top1": [top1 / 100 for top1 in TOP1.values()]}
    write_csv(results / "evaluate/summary.csv", pd.DataFrame(summary))
    scores = {"name": ["", "resnet50", "resnet50"], "initialisation": ["predicted", "predicted", "random"]}
    table = pd.DataFrame({**scores, "top1": [0.7, 0.55, 0.1]})
    write_parquet(results / "evaluate/architectures.parquet", table)
    write_json(results / "evaluate/metrics.json", {})
    return results


def between(text: str, marks: Sequence[str]) -> str:
    return text.split(marks[0])[1].split(marks[1])[0].strip()


# The rows


def test_a_row_replaces_the_earlier_one_of_its_name_data_set_time_and_machine(learning: ModuleType) -> None:
    others = [a_row(dataset="digits"), a_row(minutes=60.0), a_row(machine="another"), a_row("b")]
    rows = learning.with_row([others[0], a_row(date="2025-01-01"), *others[1:]], a_row())
    assert rows == [*others, a_row()]


def test_the_file_keeps_every_row(tmp_path: Path) -> None:
    path, rows = tmp_path / "leaderboard.json", [a_row(), a_row("b", shifts=(0.0,))]
    assert read_leaderboard(path) == []
    path.write_text(leaderboard_json(rows))
    assert read_leaderboard(path) == rows
    assert [row["name"] for row in json.loads(path.read_text())] == ["a row", "b"]
    path.write_text(leaderboard_json([]))
    assert read_leaderboard(path) == []


@pytest.mark.parametrize(("key", "value"), [("minutes", -1), ("seeds", []), ("nmae", "a")])
def test_a_file_that_is_no_leaderboard_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "leaderboard.json"
    path.write_text(json.dumps([a_row().model_dump(mode="json") | {key: value}]))
    with pytest.raises(UserError, match=f"leaderboard.json is not a leaderboard: 0.{key}"):
        read_leaderboard(path)


def test_the_shown_row_is_the_last_of_the_data_set_with_three_seeds() -> None:
    rows = [a_row("first"), a_row("second"), a_row("few seeds", shifts=(0.0, 1.0)), a_row("other", dataset="digits")]
    shown = shown_row(rows, "mnist_5k")
    assert shown is not None
    assert shown.name == "second"
    assert shown_row(rows[2:], "mnist_5k") is None


def test_the_error_of_a_mean_is_that_over_seeds() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    assert mean_and_error([1.0, 2.0, 3.0]).words(2) == "2.00 ± 0.58"
    assert mean_and_error([1.0]).words() == "1.0"


# The documents


def test_the_leaderboard_has_a_section_for_rows_that_compare_best_first(learning: ModuleType) -> None:
    rows = [a_row("low", shifts=(-3.0, -3.0)), a_row("high"), a_row("long", minutes=60.0)]
    text = learning.board_markdown(rows)
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == ["### mnist_5k, 10 minutes, a machine", "### mnist_5k, 60 minutes, a machine"]
    names = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if "`0123456789ab`" in line]
    assert names == ["high", "low", "long"]
    assert "- low: `python benchmarks/learning.py 'low'`" in text


def test_a_line_of_the_leaderboard_has_means_errors_and_what_was_not_reached(learning: ModuleType) -> None:
    seeds = [a_seed(seed, minutes_to={"60": 4.0, "70": 9.0 if seed else None, "80": None}) for seed in range(3)]
    table = learning.board_table([a_row(seeds=seeds)])
    line = dict(zip(table.columns, table.rows[0], strict=True))
    assert (line["seeds"], line["steps"], line["s per step"]) == ("3", "2,000 ± 0", "0.300 ± 0.000")
    assert (line["min to 60 %"], line["min to 70 %"], line["min to 80 %"]) == ("4.0 ± 0.0", "2 of 3 seeds", "never")
    assert (line["test"], line["bn_free"], line["ResNet-50"]) == ("70.0 ± 0.0", "35.0 ± 0.0", "55.0 ± 0.0")


def test_the_plot_has_a_line_for_each_row_with_a_curve(learning: ModuleType) -> None:
    without = a_row("no curve", seeds=[a_seed(curve=[])])
    figure = learning.curves_figure([a_row(), a_row("b"), without, a_row("other", dataset="digits")])
    lines = {axes.get_title(loc="left"): axes.lines for axes in figure.axes}
    assert {title: [line.get_label() for line in own] for title, own in lines.items()} == {
        "digits, 10 minutes, a machine": ["other"],
        "mnist_5k, 10 minutes, a machine": ["a row", "b"],
    }
    (line,) = lines["digits, 10 minutes, a machine"]
    assert list(zip(*line.get_data(), strict=True)) == [(5.0, 62.0), (10.0, 69.0)]


def test_only_what_is_between_the_marks_is_replaced(learning: ModuleType, tmp_path: Path) -> None:
    document, marks = tmp_path / "page.md", ("<!-- begin -->\n", "<!-- end -->")
    document.write_text("before\n<!-- begin -->\nold\n<!-- end -->\nafter\n")
    learning.replace_between(document, marks, "new\n\n")
    assert document.read_text() == "before\n<!-- begin -->\n\nnew\n\n<!-- end -->\nafter\n"
    document.write_text("no marks\n")
    with pytest.raises(UserError, match=r"page.md has no lines <!-- begin --> and <!-- end -->"):
        learning.replace_between(document, marks, "new\n")


def test_the_documents_show_the_leaderboard(learning: ModuleType) -> None:
    """Without a row of three seeds for the default data set, the README's block is empty."""
    rows = read_leaderboard(ROOT / LEADERBOARD)
    shown = shown_row(rows, yaml.safe_load((ROOT / "params.yaml").read_text())["dataset"])
    assert between(README, learning.SEEDS_MARKS) == seeds_markdown(shown).strip()
    board = between(learning.DOCUMENT.read_text(), learning.BOARD_MARKS)
    assert board.endswith(learning.board_markdown(rows).strip())
    assert ("learning.png" in board) == any(seed.curve for row in rows for seed in row.seeds)


# The command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.emma=0.9", "unknown key train.emma .* did you mean ema"),
        ("trian.ema=0.9", "unknown key trian"),
        ("train.ema", "must be key=value"),
        ("train.ema=2", "train.ema = 2"),
    ],
)
def test_settings_that_do_not_exist_or_are_impossible_are_refused(
    learning: ModuleType, change: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        learning.race_settings(None, [change])


def test_settings_are_those_of_the_preset_with_the_changes(learning: ModuleType) -> None:
    settings = learning.race_settings("cifar10", ["train.ema=0.5", "train.schedule.warmup=7"])
    train = settings["train"]
    assert (settings["dataset"], train["ema"], train["schedule"]["warmup"]) == ("cifar10", 0.5, 7)


def test_a_finished_seed_is_read_and_not_run_again(learning: ModuleType, results: Path) -> None:
    found = learning.run_seed(results.parent, {"seed": 7})  # settings with which nothing could run
    assert (found.seed, found.top1, found.resnet50) == (7, TOP1, 55.0)


def test_the_time_to_an_accuracy_is_that_of_the_first_validation_with_it(learning: ModuleType, results: Path) -> None:
    found = learning.seed_result(results, 0)
    assert (found.steps, found.minutes, found.seconds_per_step) == (35, 3.5, 6.0)
    assert found.minutes_to == {"60": 2.0, "70": 3.5, "80": None}
    assert found.curve == [(2.0, 65.0), (3.0, 62.0), (3.5, 75.0)]


def test_a_run_without_validation_has_no_curve_and_reaches_nothing(learning: ModuleType, results: Path) -> None:
    history = pd.read_csv(results / "train/history.csv").drop(columns="val_top1")
    write_csv(results / "train/history.csv", history)
    found = learning.seed_result(results, 0)
    assert (found.curve, set(found.minutes_to.values())) == ([], {None})


def test_seeds_of_several_commits_make_no_row(learning: ModuleType, tmp_path: Path) -> None:
    first = learning.first_commit(tmp_path)
    assert first == learning.commit() == learning.first_commit(tmp_path)
    (tmp_path / "commit.txt").write_text("0123456789ab")
    with pytest.raises(UserError, match=f"began with commit 0123456789ab, now it is {first}"):
        learning.first_commit(tmp_path)


def small_changes() -> list[str]:
    """Return the settings that make a run small, as options of the command."""
    usual = flat_settings(yaml.safe_load((ROOT / "params.yaml").read_text()))
    small = flat_settings(small_settings(train={"steps": 4, "validation": {"every": 2}}))
    return [f"-S{key}={value}" for key, value in small.items() if value != usual[key]]


@pytest.mark.slow
def test_the_command_writes_a_row_and_runs_no_finished_seed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    board = tmp_path / "leaderboard.json"
    command = [sys.executable, str(ROOT / "benchmarks/learning.py"), "a row", "--seeds", "1", *small_changes()]
    command += ["--folder", str(tmp_path / "runs"), "--leaderboard", str(board)]

    def run() -> LeaderboardRow:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (row,) = read_leaderboard(board)
        assert LeaderboardRow.model_validate_json(done.stdout.splitlines()[-1]) == row
        return row

    with ray_for_processes() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        first = run()
    (seed,) = first.seeds
    assert (first.name, first.dataset, seed.seed, seed.steps) == ("a row", "digits", 0, 4)
    assert set(seed.top1) == {"test", "wide", "deep", "dense", "bn_free"}
    assert len(seed.curve) == 2
    assert seed.curve[-1][0] == pytest.approx(seed.minutes, abs=0.01)
    (history,) = (tmp_path / "runs").glob("*/seed-0/results/train/history.csv")
    written = history.stat().st_mtime_ns
    assert run().seeds == first.seeds
    assert history.stat().st_mtime_ns == written
