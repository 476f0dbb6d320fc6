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
from example_results import drop, edit, edit_scores, example_parts, make_results, without_validation
from leaderboard_examples import a_row
from PIL import Image
from small_settings import ROOT
from user_project import git

from ghn import GHNConfig, sample_architecture
from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.errors import UserError
from pipeline.evaluation.summaries import summarise_architectures
from pipeline.params import load_params
from pipeline.reporting import plots
from pipeline.reporting.extremes import RENDERED, ExtremesGallery
from pipeline.reporting.finetuning_tables import finetuning_table
from pipeline.reporting.leaderboard import LEADERBOARD, leaderboard_json
from pipeline.reporting.numbers import duration, short_count
from pipeline.reporting.page import PageFigure, Recipe, Table, git_state, recipe
from pipeline.reporting.read_results import Results, read_results
from pipeline.reporting.results_page import (
    PageParts,
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
from pipeline.stages.report import gallery_of, origin_of, report
from pipeline.storage.files import write_bytes
from pipeline.storage.tables import write_csv

PARAMS = load_params(ROOT / "params.yaml")
SETTINGS = ReportSettings.of(PARAMS)


@pytest.fixture(scope="module")
def page(results_of_a_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = read_results(results_of_a_run)
    parts = example_parts(results, SETTINGS, a_row(command="python benchmarks/learning.py <name>"))
    return write_report(results, SETTINGS, parts, tmp_path_factory.mktemp("report"))


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
    assert git_state() == "unknown: not in a git repository with a commit that git may read"
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
        name_of(GHNConfig(num_classes=10, image_size=14, variant="ghn1", layer_norm=True)) == "GHN-1, with layer norm"
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
    plots = ("accuracy", "size", "training", "gradients", "time", "finetuning", "epochs", "distance", "study")
    plots = (*plots, "properties", "embeddings", "adaptation", "detection", "scenes")
    tables = ("accuracy", "finetuning", "budgets", "worth", "initialisations", "properties", "study", "training")
    tables = (*tables, "traits", "adaptation", "conditioning", "detection")
    assert names == {"index.html", *(f"{name}.png" for name in plots), *(f"{name}.md" for name in tables)}
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


NO_PARTS = PageParts({"code": "<i>"}, Recipe((), is_clean=True), ExtremesGallery([], {}))


def rendered(results: Results, settings: ReportSettings = SETTINGS, parts: PageParts = NO_PARTS) -> str:
    """Return the page without figures."""
    figures = dict.fromkeys(report_plots(results, settings.train), PageFigure("", "", ""))
    return render_report(results, settings, parts, report_tables(results, settings), figures)


def test_names_of_data_sets_are_escaped(results_of_a_run: Path) -> None:
    settings = SETTINGS.model_copy(update={"dataset": "photos/<b>&co"})
    html = rendered(read_results(results_of_a_run), settings)
    assert "photos/&lt;b&gt;&amp;co" in html
    assert "<i>" not in html


def test_several_seeds_have_a_section_only_if_the_leaderboard_has_them(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    assert "seeds</h2>" not in rendered(results)
    html = rendered(results, parts=replace(NO_PARTS, seeds=a_row(command="python benchmarks/learning.py <name>")))
    assert "<h2>Three seeds</h2>" in html
    assert "python benchmarks/learning.py &lt;name&gt;" in html


def test_properties_without_any_figure_have_a_table_and_no_plot(results: Path) -> None:
    columns = [
        column for column in pd.read_csv(results / "properties/scores.csv") if "tau" in column or "diff" in column
    ]
    edit(
        results / "properties/scores.csv",
        lambda table: table.assign(**dict.fromkeys(columns, np.nan), reason="too few networks"),
    )
    read = read_results(results)
    assert "properties" not in report_plots(read, SETTINGS.train)
    assert "No property has enough networks" in rendered(read)


def test_the_page_says_how_to_make_it_again_and_admits_changes(results_of_a_run: Path) -> None:
    results = read_results(results_of_a_run)
    parts = replace(NO_PARTS, recipe=Recipe(("git checkout 0123456789ab", "dvc repro"), is_clean=False))
    html = rendered(results, parts=parts)
    assert "<pre><code>git checkout 0123456789ab\ndvc repro</code></pre>" in html
    assert "uncommitted.diff" in html
    assert "uncommitted.diff" not in rendered(results)


def test_the_recipe_checks_out_the_commit_and_applies_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    again = ("make env", "source .venv/bin/activate", "dvc repro")
    assert recipe() == Recipe(again, is_clean=False)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "params.yaml")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert recipe() == Recipe((f"git checkout {commit[:12]}", *again), is_clean=True)
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-mule")
    assert recipe().commands[-2:] == ("dvc exp apply puffy-mule", "dvc repro")
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    assert not recipe().is_clean


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
def test_a_page_of_five_initialisations_fits_its_window(tmp_path: Path) -> None:
    read = read_results(make_results(tmp_path / "results", others=["sgd", "nearest", "small_norm"]))
    (tmp_path / "report").mkdir()
    page = write_report(read, SETTINGS, example_parts(read, SETTINGS), tmp_path / "report")
    numbers = "return [...document.querySelectorAll('.numbers strong')].map(number => number.innerText)"
    for width in (1280, 390):
        look = look_at(page, width, tmp_path, numbers)
        assert (look.width, look.overflow) == (width, 0)
        assert look.seen == [f"{number.value}{number.unit}" for number in headline_numbers(read)]


STORY = [
    "What a prediction is worth",
    "Accuracy by split and initialisation",
    "Ablations: what the parts are worth",
    "Generalisation or memory",
    "Properties of networks from their embeddings",
    "The best and the worst architectures",
    "Speed",
    "Fine-tuning on other data sets",
    "The hypernetwork adapted to other data sets",
    "One hypernetwork for several data sets",
    "Detection on predicted backbones",
    "Three seeds",
    "Training",
    "How to reproduce this page",
]
"""The headings of the page, in their order."""

PROBE = """
  const seen = element => element.getBoundingClientRect().height > 0;
  const sections = [...document.querySelectorAll("main section")];
  const figures = [...document.querySelectorAll("figure svg")].filter(seen);
  const ink = getComputedStyle(document.body).color, sheet = getComputedStyle(document.documentElement).backgroundColor;
  const text = document.querySelector("#accuracy figure svg text");
  return {
    headings: [...document.querySelectorAll("h2")].map(heading => heading.innerText),
    empty: sections.filter(s => !s.querySelector("table tbody td, figure svg")).map(s => s.id),
    hollow: [...document.querySelectorAll("p, h3, caption, figcaption, li")].filter(e => !e.innerText.trim()).length,
    unnamed: figures.filter(svg => svg.getAttribute("role") != "img" || !svg.getAttribute("aria-label")).length,
    figures: figures.length,
    tooWide: figures.filter(svg => !svg.closest(".graph") && svg.getBoundingClientRect().right > innerWidth).length,
    requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(n => !n.startsWith("data:")),
    dark: sheet.match(/\\d+/g).map(Number).reduce((a, b) => a + b) < 200,
    contrast: sheet != ink && getComputedStyle(text).fill != sheet,
  };
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_the_story_in_both_themes_without_the_network(
    page: Path, width: int, dark: bool, tmp_path: Path
) -> None:
    look = look_at(page, width, tmp_path, PROBE, dark)
    assert (look.width, look.overflow) == (width, 0)
    assert look.seen == {
        "headings": STORY,
        "empty": [],
        "hollow": 0,
        "unnamed": 0,
        "figures": 14 + 2 * RENDERED,
        "tooWide": 0,
        "requests": [],
        "dark": dark,
        "contrast": True,
    }
    assert "The hypernetwork predicted all parameters of 100 architectures" in look.text


def store_extremes(results: Path) -> None:
    """Store architectures of split test, and make them the best and the worst ones of the results."""
    sampled = [sample_architecture(0, "test", index) for index in range(2 * RENDERED)]
    shard = write_shard("storage/test/0.parquet", table_of([row(*item) for item in enumerate(sampled)]))
    write_manifest(results / "generate" / "manifest.json", {"test": ("test", [shard])})
    hashes = [network.network_hash for network in sampled]

    def change(table: pd.DataFrame) -> pd.DataFrame:
        stored = table["split"].eq("test") & table["index"].lt(len(sampled))
        table.loc[stored, "top1"] = [0.95, 0.94, 0.01, 0.0]
        table.loc[stored, "nodes"] = 100
        table.loc[stored, "identity"] = hashes
        return table

    edit_scores(results, "predicted", change)


def test_pictures_are_only_of_the_architectures_that_were_measured(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store_extremes(results)
    best, *_, worst = gallery_of(read_results(results), PARAMS).pictures
    assert (best.end, best.name, best.place) == ("The best", "test/0", "95.0%, 1 of 223")
    assert (worst.end, worst.name, worst.place) == ("The worst", "test/3", "0.0%, 223 of 223")
    edit_scores(results, "predicted", lambda table: table.assign(identity="0" * 24))
    with pytest.raises(UserError, match=r"architecture test/0 is .*\n`dvc repro --force evaluate`"):
        gallery_of(read_results(results), PARAMS)


@pytest.mark.slow
def test_the_stage_logs_the_page_and_its_tables_and_ends_the_pipeline_run(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    write_bytes(LEADERBOARD, leaderboard_json([a_row(dataset=PARAMS.dataset)]).encode())
    store_extremes(results)
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
