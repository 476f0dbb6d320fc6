from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, look_at
from example_results import drop, edit, summary_of, without_validation
from PIL import Image
from small_settings import ROOT

from pipeline.errors import UserError
from pipeline.params import Params, load_params
from pipeline.reporting import plots
from pipeline.reporting.page import Table, git_state
from pipeline.reporting.read_results import Results, read_results
from pipeline.reporting.results_page import (
    accuracy_table,
    duration,
    extremes,
    finetuning_table,
    headline,
    headline_numbers,
    nonfinite_warning,
    render,
    report_plots,
    report_tables,
    write_report,
)
from pipeline.stages.report import provenance, report
from pipeline.storage.tables import write_csv

PARAMS = load_params(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def page(results_of_a_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = read_results(results_of_a_run)
    return write_report(results, PARAMS, provenance(results, PARAMS), tmp_path_factory.mktemp("report"))


# What is said


def test_the_headline_counts_the_gain_over_random_initialisation(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    test = results.test
    gain = 100 * (test["predicted_top1"] - test["random_top1"])
    assert "100 architectures" in headline(results)
    assert f"{gain:.1f} points more than with random initialisation" in headline(results)


def test_the_headline_admits_a_gain_within_the_errors(results: Path) -> None:
    edit(
        results / "evaluate" / "architectures.parquet",
        lambda table: table.assign(predicted_top1=table["random_top1"]),
    )
    architectures = pd.read_parquet(results / "evaluate" / "architectures.parquet")
    write_csv(results / "evaluate" / "summary.csv", summary_of(architectures))
    assert "not distinguishable from random initialisation" in headline(read_results(results))


def test_architectures_without_finite_logits_are_counted_not_hidden(results: Path) -> None:
    path = results / "evaluate" / "architectures.parquet"

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["split"].eq("bn_free") & table["index"].lt(3), "predicted_loss"] = np.nan
        return table

    edit(path, change)
    read = read_results(results)
    rows = accuracy_table(read.accuracy, read.architectures)
    assert rows.columns[-1] == "not finite"
    assert {row[0]: row[-1] for row in rows.rows}["bn_free"] == "3"
    assert nonfinite_warning(read.architectures).startswith("The predicted parameters of 3 of 223")


def test_a_split_of_one_architecture_has_no_standard_error(results: Path) -> None:
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table[table["index"] == 0])
    write_csv(results / "evaluate" / "summary.csv", summary_of(pd.read_parquet(path)))
    read = read_results(results)
    assert "1 architecture that" in headline(read)
    text = accuracy_table(read.accuracy, read.architectures).markdown() + str(headline_numbers(read))
    assert "nan" not in text
    assert "±" not in text


def test_a_target_that_was_never_reached_is_said_so(results_of_a_run: Path) -> None:
    rows = finetuning_table(read_results(results_of_a_run).finetuning).rows
    assert [row[5] for row in rows] == ["30", "not reached", "30", "not reached"]


def test_best_and_worst_are_ranked_and_small_splits_are_listed_whole(results_of_a_run: Path) -> None:
    tables = extremes(read_results(results_of_a_run).architectures)
    assert [row[0] for row in tables["test"].rows] == ["1", "2", "3", "98", "99", "100"]
    accuracies = [float(row[3]) for row in tables["test"].rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {row[1] for row in tables["predefined"].rows} == {"resnet50", "vit", "darts"}


def test_a_markdown_table_has_one_line_a_row_and_escapes_bars() -> None:
    table = Table(("name", "value"), [("a|b", "1")])
    assert table.markdown() == "| name | value |\n| :-- | --: |\n| a\\|b | 1 |\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.34, "12.3 s"),
        (250, "4 min 10 s"),
        (3599.7, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (12_300, "12.3 k"), (999_600, "1 M"), (2.5e9, "2.5 G")])
def test_counts_have_three_digits(number: float, text: str) -> None:
    assert plots.short_count(number) == text


def test_the_provenance_says_whether_code_or_settings_differ_from_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_state() == "not in a git repository with a commit"
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "params.yaml"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    assert git_state().endswith(", clean")
    (tmp_path / "results.csv").write_text("not code\n")
    assert git_state().endswith(", clean")
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    assert git_state().endswith(", with uncommitted changes in params.yaml")


# What is said of training


def with_training(**changes: Any) -> Params:
    return PARAMS.model_copy(update={"train": PARAMS.train.model_copy(update=changes)})


def training_rows(results: Results, params: Params = PARAMS) -> dict[str, str]:
    return dict(report_tables(results, params)["training"].rows)


def captions(results: Results, params: Params = PARAMS) -> dict[str, str]:
    return {name: plot.caption for name, plot in report_plots(results, params).items()}


def test_a_step_that_dropped_all_its_architectures_is_left_out_and_counted(results: Path) -> None:
    drop(results, 8, list("abcdefgh"), all_of_them=True)
    read = read_results(results)
    assert "1 step without a finite loss left out" in captions(read)["training"]
    assert training_rows(read)["dropped"] == "8 architectures, whose loss or gradient was not finite"


def test_the_architectures_that_were_dropped_most_often_are_named(results: Path) -> None:
    assert training_rows(read_results(results))["dropped"] == "no architecture"
    assert "most often" not in training_rows(read_results(results))
    drop(results, 8, ["d", "a", "b", "c"])
    drop(results, 9, ["b", "c"])
    drop(results, 10, ["c"])
    assert training_rows(read_results(results))["most often"] == "c (3 times), b (2 times), d (1 time)"


def test_the_page_says_which_weights_are_kept(results: Path) -> None:
    read = read_results(results)
    rows = training_rows(read, with_training(ema=0.999))
    assert rows["validation top-1"] == f"{100 * read.history['val_top1'].max():.1f}%, the best of 12 validations"
    assert rows["weights kept"] == "of step 2,750, moving average with decay 0.999"
    assert "a ring marks the step whose weights are kept" in captions(read)["training"]
    without_validation(results)
    read = read_results(results)
    assert training_rows(read)["weights kept"] == "of the last step"
    assert "validation top-1" not in training_rows(read)
    assert "alidation" not in captions(read)["training"]


def test_the_imbalance_is_only_that_of_several_workers(results_of_a_run: Path) -> None:
    read = read_results(results_of_a_run)
    several, one = with_training(workers=4), with_training(workers=1)
    median = f"{read.history['imbalance'].median():.2f}"
    assert f"The slowest of 4 workers takes {median} times as long" in captions(read, several)["time"]
    assert median in training_rows(read, several)["imbalance"]
    assert "slowest" not in captions(read, one)["time"]
    assert "imbalance" not in training_rows(read, one)


def test_waiting_and_graphs_in_the_background_are_told_apart(results: Path) -> None:
    edit(results / "train" / "history.csv", lambda table: table.assign(wait_seconds=1.0, step_seconds=4.0))
    read = read_results(results)
    assert training_rows(read)["waiting for data"] == "25.0% of the time of steps"
    assert "makes those of the next step in the background, in 30 ms." in captions(read)["time"]


def test_the_precision_is_what_target_networks_had(results: Path) -> None:
    assert training_rows(read_results(results))["precision"] == "fp32"
    path = results / "train" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bf16"}))
    assert training_rows(read_results(results))["precision"] == "bf16 in target networks, fp32 elsewhere"


def test_gradients_that_are_not_clipped_are_said_so(results_of_a_run: Path) -> None:
    read = read_results(results_of_a_run)
    assert "not clipped" not in captions(read, with_training(architecture_clip=1.0))["gradients"]
    assert "; the latter are not clipped." in captions(read, with_training(architecture_clip=None))["gradients"]


@pytest.mark.parametrize(("schedule", "lines"), [("multi_step", [2011, 2491]), ("cosine", [])])
def test_drops_of_the_learning_rate_are_those_of_a_schedule_in_steps(
    results_of_a_run: Path, schedule: str, lines: list[int]
) -> None:
    read = read_results(results_of_a_run)
    loss, _ = report_plots(read, with_training(schedule=schedule))["training"].draw(plots.WIDE).axes
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == "--"] == lines


# The page


def test_the_report_has_the_page_the_plots_and_the_tables_of_the_readme(page: Path) -> None:
    names = {path.name for path in page.parent.iterdir()}
    figures = {f"{name}.png" for name in ("accuracy", "size", "training", "gradients", "time", "finetuning")}
    assert names == {"index.html", "accuracy.md", "finetuning.md", "training.md", *figures}
    with Image.open(page.parent / "accuracy.png") as image:
        assert image.width == 1440


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    html = page.read_text()
    addresses = re.findall(r'(?:\b(?:src|href|action)=|url\(|@import)\s*["\']?([^"\')\s>]+)', html)
    assert {address for address in addresses if not address.startswith(("#", "data:"))} == set()
    assert "<script" not in html


def test_the_page_names_settings_versions_and_the_published_figures(page: Path) -> None:
    html = page.read_text()
    for text in (
        "train.learning_rate",
        "Python 3",
        "ray 2",
        "Published on CIFAR-10",
        "66.9 / 77.1",
    ):
        assert text in html


def test_names_of_data_sets_are_escaped(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    params = PARAMS.model_copy(update={"dataset": "photos/<b>&co"})
    plot = {"caption": "", "wide": "", "narrow": ""}
    figures = dict.fromkeys(report_plots(results, params), plot)
    html = render(results, params, {"code": "<i>"}, report_tables(results, params), figures)
    assert "photos/&lt;b&gt;&amp;co" in html
    assert "<i>" not in html


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_headline_and_the_plots_that_fit_its_width(page: Path, width: int, tmp_path: Path) -> None:
    probe = """
      const plots = [...document.querySelectorAll("figure svg")];
      const shown = plots.filter(svg => svg.getBoundingClientRect().width > 100);
      const labels = Math.min(...shown.map(svg => svg.querySelectorAll("text").length));
      return {plots: plots.length, shown: shown.length, labels};
    """
    look = look_at(page, width, tmp_path, probe)
    assert look.seen.pop("labels") > 5
    assert look.seen == {"plots": 12, "shown": 6}
    assert (look.width, look.overflow) == (width, 0)
    assert "The hypernetwork predicted all parameters of 100 architectures" in look.text


@pytest.mark.slow
def test_the_stage_logs_the_page_and_its_tables_and_ends_the_pipeline_run(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    report(PARAMS)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PARAMS.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (stage,) = [run for run in runs if run.info.run_name == "report"]
    (pipeline,) = [run for run in runs if run is not stage]
    for column in ("test_top1", "bn_free_top1", "digits_predicted_top1", "faces_random_top1"):
        assert 0 < pipeline.data.metrics[column] < 1
    logged = {file.path for file in client.list_artifacts(stage.info.run_id)}  # folders
    assert logged == {"report", "tables"}
    assert (tmp_path / "results" / "report" / "index.html").is_file()


def test_the_stage_refuses_bad_inputs_before_it_starts_a_run(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (results / "finetune" / "curves.parquet").unlink()
    with pytest.raises(UserError, match="dvc repro finetune"):
        report(PARAMS)
    assert not (tmp_path / "mlflow.db").exists()
