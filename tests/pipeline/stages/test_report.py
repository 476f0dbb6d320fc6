from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, look_at
from example_results import drop, edit, edit_scores, make_results, without_validation
from leaderboard_examples import a_row
from PIL import Image
from small_settings import ROOT

from ghn import GHNConfig
from pipeline.errors import UserError
from pipeline.evaluation.summaries import summarise_architectures
from pipeline.params import load_params
from pipeline.reporting import plots
from pipeline.reporting.finetuning_tables import finetuning_table
from pipeline.reporting.leaderboard import LEADERBOARD, leaderboard_json
from pipeline.reporting.numbers import duration, short_count
from pipeline.reporting.page import PageFigure, Table, git_state
from pipeline.reporting.read_results import Results, read_results
from pipeline.reporting.results_page import (
    ReportSettings,
    headline,
    headline_numbers,
    nonfinite_warning,
    render_report,
    report_plots,
    report_tables,
    write_report,
)
from pipeline.reporting.results_tables import accuracy_table, extremes, name_of
from pipeline.stages.report import origin_of, report
from pipeline.storage.files import write_bytes
from pipeline.storage.tables import write_csv

PARAMS = load_params(ROOT / "params.yaml")
SETTINGS = ReportSettings.of(PARAMS)


@pytest.fixture(scope="module")
def page(results_of_a_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = read_results(results_of_a_run)
    return write_report(results, SETTINGS, origin_of(results, SETTINGS), tmp_path_factory.mktemp("report"))


# What is said


def test_the_headline_counts_the_gain_over_random_initialisation(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    test = results.headline
    gain = 100 * (test["predicted_top1"] - test["random_top1"])
    assert "100 architectures" in headline(results)
    assert f"{gain:.1f} points more than with random initialisation" in headline(results)


def test_the_headline_admits_a_gain_within_the_errors(results: Path) -> None:
    scores = pd.read_parquet(results / "evaluate" / "architectures.parquet")
    random = scores.loc[scores["initialisation"] == "random", "top1"].to_numpy()
    edit_scores(results, "predicted", lambda table: table.assign(top1=random))
    assert "not distinguishable from random initialisation" in headline(read_results(results))


def test_architectures_without_finite_logits_are_counted_not_hidden(results: Path) -> None:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["split"].eq("bn_free") & table["index"].lt(3), "loss"] = np.nan
        return table

    edit_scores(results, "predicted", change)
    read = read_results(results)
    rows = accuracy_table(read.accuracy, read.evaluated)
    assert rows.columns[-1] == "not finite"
    assert {row[0]: row[-1] for row in rows.rows}["bn_free"] == "3"
    warning = nonfinite_warning(read.accuracy, read.evaluated)
    assert warning.startswith("The predicted parameters of 3 of 223")
    edit_scores(results, "random", lambda table: table.assign(loss=np.nan))
    read = read_results(results)
    assert accuracy_table(read.accuracy, read.evaluated).columns[-1] == "random: not finite"
    warning = nonfinite_warning(read.accuracy, read.evaluated)
    assert "; with random initialisation, 223 of 223 architectures give logits that are not finite; images" in warning


def test_a_split_of_one_architecture_has_no_standard_error(results: Path) -> None:
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table[table["index"] == 0])
    write_csv(results / "evaluate" / "summary.csv", summarise_architectures(pd.read_parquet(path)))
    read = read_results(results)
    assert "1 architecture that" in headline(read)
    text = accuracy_table(read.accuracy, read.evaluated).markdown() + str(headline_numbers(read))
    assert "nan" not in text
    assert "±" not in text


def test_a_target_that_was_never_reached_is_said_so(results_of_a_run: Path) -> None:
    read = read_results(results_of_a_run)
    rows = finetuning_table(read.finetuning.assign(share_to_target=[0.5, np.nan] * 5), read.budgets).rows
    assert [row[8] for row in rows] == ["50%", "never"] * 5


def test_best_and_worst_are_ranked_and_small_splits_are_listed_whole(results_of_a_run: Path) -> None:
    read = read_results(results_of_a_run)
    tables = extremes(read.architectures, read.evaluated)
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
    assert short_count(number) == text


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


def with_training(**changes: Any) -> ReportSettings:
    return SETTINGS.model_copy(update={"train": SETTINGS.train.model_copy(update=changes)})


def with_workers(results: Results, workers: int) -> Results:
    return replace(results, training=replace(results.training, workers=workers))


def training_rows(results: Results, settings: ReportSettings = SETTINGS) -> dict[str, str]:
    return dict(report_tables(results, settings)["training"].rows)


def captions(results: Results, settings: ReportSettings = SETTINGS) -> dict[str, str]:
    return {name: plot.caption for name, plot in report_plots(results, settings.train).items()}


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
    several, one = with_workers(read, 4), with_workers(read, 1)
    median = f"{read.history['imbalance'].median():.2f}"
    assert f"The slowest of 4 workers takes {median} times as long" in captions(several)["time"]
    assert median in training_rows(several)["imbalance"]
    assert "slowest" not in captions(one)["time"]
    assert "imbalance" not in training_rows(one)


def test_workers_and_device_are_those_that_trained_not_those_of_the_settings(results: Path) -> None:
    assert training_rows(read_results(results))["workers"] == "2 on CPUs"
    path = results / "train" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"workers": 8, "device": "cuda"}))
    read = read_results(results)
    assert training_rows(read)["workers"] == "8 on GPUs"
    assert origin_of(read, SETTINGS)["workers"] == "8"
    assert "workers" not in ReportSettings.model_fields


def test_a_hypernetwork_is_named_after_its_variant_and_the_parts_that_differ() -> None:
    assert name_of(GHNConfig(num_classes=10, image_size=14)) == "GHN-2"
    assert (
        name_of(GHNConfig(num_classes=10, image_size=14, variant="ghn1", layer_norm=True)) == "GHN-1, layer_norm True"
    )


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
    settings = with_training(schedule=SETTINGS.train.schedule.model_copy(update={"name": schedule}))
    loss, _ = report_plots(read, settings.train)["training"].render(plots.WIDE).axes
    assert [line.get_xdata()[0] for line in loss.lines if line.get_linestyle() == "--"] == lines


# The page


def test_the_report_has_the_page_the_plots_and_the_tables_of_the_readme(page: Path) -> None:
    names = {path.name for path in page.parent.iterdir()}
    figures = {f"{name}.png" for name in ("accuracy", "size", "training", "gradients", "time", "finetuning")}
    assert names == {"index.html", "accuracy.md", "finetuning.md", "budgets.md", "training.md", *figures}
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
        "train.optimizer.learning_rate",
        "Python 3",
        "ray 2",
        "Published on CIFAR-10",
        "66.9 / 77.1",
    ):
        assert text in html


def test_names_of_data_sets_are_escaped(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    settings = SETTINGS.model_copy(update={"dataset": "photos/<b>&co"})
    figures = dict.fromkeys(report_plots(results, settings.train), PageFigure("", "", ""))
    html = render_report(results, settings, {"code": "<i>"}, report_tables(results, settings), figures)
    assert "photos/&lt;b&gt;&amp;co" in html
    assert "<i>" not in html


def test_several_seeds_have_a_section_only_if_the_leaderboard_has_them(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    figures = dict.fromkeys(report_plots(results, SETTINGS.train), PageFigure("", "", ""))
    parts = results, SETTINGS, {}, report_tables(results, SETTINGS), figures
    assert "seeds</h2>" not in render_report(*parts)
    html = render_report(*parts, a_row(command="python benchmarks/learning.py <name>"))
    assert "<h2>Three seeds</h2>" in html
    assert "python benchmarks/learning.py &lt;name&gt;" in html


# Any number of initialisations


@pytest.fixture(scope="module")
def three_initialisations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("three") / "results", others=["sgd"])


def test_a_third_initialisation_is_in_every_table_and_among_the_numbers_on_top(three_initialisations: Path) -> None:
    read = read_results(three_initialisations)
    tables = report_tables(read, SETTINGS)
    assert tables["accuracy"].columns[8:] == ("sgd: top-1, %", "best", "top-5, %")
    (row,) = [row for row in tables["accuracy"].rows if row[0] == "test"]
    assert row[8].startswith(f"{100 * read.headline['sgd_top1']:.1f} ± ")
    assert [row[:3] for row in tables["finetuning"].rows][2] == ("digits", "1", "sgd")
    assert extremes(read.architectures, read.evaluated)["test"].columns[-1] == "sgd, %"
    names = [number.name for number in headline_numbers(read)]
    assert names == ["predicted parameters", "random initialisation", "sgd", "chance"]
    assert headline(read) == headline(replace(read, architectures=read.architectures.query("initialisation != 'sgd'")))


def test_the_order_and_text_of_two_initialisations_do_not_change_with_a_third(
    results_of_a_run: Path, three_initialisations: Path
) -> None:
    two, three = (report_tables(read_results(path), SETTINGS) for path in (results_of_a_run, three_initialisations))
    assert [row[:8] for row in three["accuracy"].rows] == list(two["accuracy"].rows)
    kept = [row for row in three["finetuning"].rows if row[2] != "sgd"]
    assert [row[:4] for row in kept] == [row[:4] for row in two["finetuning"].rows]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_of_five_initialisations_fits_its_window(tmp_path: Path, width: int) -> None:
    read = read_results(make_results(tmp_path / "results", others=["sgd", "nearest", "small_norm"]))
    (tmp_path / "report").mkdir()
    page = write_report(read, SETTINGS, origin_of(read, SETTINGS), tmp_path / "report")
    numbers = "return [...document.querySelectorAll('.numbers strong')].map(number => number.innerText)"
    look = look_at(page, width, tmp_path, numbers)
    assert (look.width, look.overflow) == (width, 0)
    assert look.seen == [f"{number.value}{number.unit}" for number in headline_numbers(read)]


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
    write_bytes(LEADERBOARD, leaderboard_json([a_row(dataset=PARAMS.dataset)]).encode())
    report(PARAMS)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PARAMS.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (stage,) = [run for run in runs if run.info.run_name == "report"]
    (pipeline,) = [run for run in runs if run is not stage]
    for column in ("test_top1", "bn_free_top1", "digits_10_predicted_top1", "faces_1_random_top1"):
        assert 0 < pipeline.data.metrics[column] < 1
    assert (pipeline.data.metrics["seeds"], pipeline.data.metrics["seeds_test_top1"]) == (3, 0.7)
    logged = {file.path for file in client.list_artifacts(stage.info.run_id)}  # folders
    assert logged == {"report", "tables"}
    assert "Three seeds" in (tmp_path / "results" / "report" / "index.html").read_text()


def test_the_stage_refuses_bad_inputs_before_it_starts_a_run(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (results / "finetune" / "curves.parquet").unlink()
    with pytest.raises(UserError, match="dvc repro finetune"):
        report(PARAMS)
    assert not (tmp_path / "mlflow.db").exists()
