from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ghn import GHN, GHNConfig
from pipeline import plots
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.report import (
    Table,
    accuracy_table,
    duration,
    extremes,
    finetuning_table,
    git_state,
    headline,
    headline_numbers,
    nonfinite_warning,
    provenance,
    read_results,
    render,
    report,
    report_plots,
    report_tables,
    write_report,
)
from pipeline.results import write_csv, write_json, write_parquet

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

# split: architectures, mean predicted top-1, millions of parameters (smallest, largest)
SPLITS = {
    "test": (100, 0.29, (0.02, 2)),
    "wide": (30, 0.24, (0.3, 30)),
    "deep": (30, 0.22, (0.05, 9)),
    "dense": (30, 0.27, (0.05, 5)),
    "bn_free": (30, 0.14, (0.02, 1.5)),
}


def make_results(folder: Path, seed: int = 0, steps: int = 3000) -> Path:
    """Writes what the other stages write: a run that looks like a real one."""
    rng = np.random.default_rng(seed)
    _make_generate(folder / "generate", rng)
    _make_train(folder / "train", rng, steps)
    _make_evaluate(folder / "evaluate", rng)
    _make_finetune(folder / "finetune", rng)
    return folder


def _make_generate(folder: Path, rng: np.random.Generator) -> None:
    def shards(rows: int) -> list[dict]:
        starts = range(0, rows, 500)
        return [
            {"file": f"{start:06d}.parquet", "rows": min(500, rows - start), "sha256": rng.bytes(32).hex()}
            for start in starts
        ]

    counts = {"train": 2000, "val": 50, **{split: count for split, (count, *_) in SPLITS.items()}}
    splits = {
        split: {"folder": f"architectures/{split}", "rows": rows, "shards": shards(rows)}
        for split, rows in counts.items()
    }
    write_json(folder / "manifest.json", {"splits": splits})


def _make_train(folder: Path, rng: np.random.Generator, steps: int) -> None:
    step = np.arange(1, steps + 1)
    progress = 1 - np.exp(-step / (steps / 3))
    settled = np.where(step > 0.67 * steps, 0.35, 1.0)
    history = pd.DataFrame(
        {
            "step": step,
            "loss": 2.32 - 0.55 * progress + 0.14 * settled * rng.standard_normal(steps),
            "top1": np.clip(0.1 + 0.21 * progress + 0.05 * settled * rng.standard_normal(steps), 0, 1),
            "learning_rate": np.select([step <= 0.67 * steps, step <= 0.83 * steps], [1e-3, 1e-4], 1e-5),
            "gradient_norm": rng.lognormal(0.4, 0.8, steps),
            "graph_seconds": rng.normal(0.03, 0.004, steps),
            "hypernetwork_seconds": rng.normal(0.21, 0.02, steps),
            "target_seconds": rng.normal(0.94, 0.11, steps),
            "communication_seconds": rng.normal(0.06, 0.01, steps),
            "dropped": 0,
        }
    )
    measured = history[list(plots.TIME_PARTS)].sum(axis=1)
    history["step_seconds"] = measured + rng.normal(0.03, 0.003, steps)
    history["images_per_second"] = 64 / history["step_seconds"]
    history["architectures_per_second"] = 8 / history["step_seconds"]
    write_csv(folder / "history.csv", history)
    metrics = {
        "loss": float(history["loss"].iloc[-50:].mean()),
        "top1": float(history["top1"].iloc[-50:].mean()),
        "steps": steps,
        "seconds": float(history["step_seconds"].sum()),
        "architectures_per_second": float(history["architectures_per_second"].mean()),
        "parameters": 2_319_000,
    }
    write_json(folder / "metrics.json", metrics)
    GHN(GHNConfig(num_classes=10, image_size=16, hidden=8, kernel=3)).save(folder / "checkpoint")


def _make_evaluate(folder: Path, rng: np.random.Generator) -> None:
    frames = []
    for split, (count, mean, (low, high)) in SPLITS.items():
        parameters = 1e6 * low * (high / low) ** rng.beta(2, 2.5, count)
        frames.append(_architectures(split, [""] * count, mean, parameters, rng))
    named = ["resnet50", "vit", "darts"]
    frames.append(_architectures("predefined", named, 0.2, np.array([23.6e6, 2.4e6, 1.1e6]), rng))
    architectures = pd.concat(frames, ignore_index=True)
    write_parquet(folder / "architectures.parquet", architectures)
    write_csv(folder / "summary.csv", summary_of(architectures))


def _architectures(
    split: str, names: list[str], mean: float, parameters: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    count = len(names)
    predicted = np.clip(rng.normal(mean, 0.055, count), 0.08, 0.9)
    random = np.clip(rng.normal(0.101, 0.016, count), 0.02, 0.9)
    return pd.DataFrame(
        {
            "split": split,
            "index": np.arange(count),
            "name": names,
            "identity": [rng.bytes(12).hex() for _ in range(count)],
            "parameters": parameters.astype(int),
            "nodes": rng.integers(40, 400, count),
            "predicted_top1": predicted,
            "predicted_top5": np.clip(0.5 + predicted, 0, 0.99),
            "predicted_loss": 2.4 - predicted,
            "random_top1": random,
            "random_top5": np.clip(0.4 + random, 0, 0.99),
            "random_loss": rng.normal(2.6, 0.1, count),
            "seconds": rng.gamma(2.0, 0.4, count),
        }
    )


def summary_of(architectures: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for split, group in architectures.groupby("split", sort=True):
        row = {"split": split, "architectures": len(group)}
        for kind in ("predicted", "random"):
            row[f"{kind}_top1"] = group[f"{kind}_top1"].mean()
            row[f"{kind}_top1_error"] = group[f"{kind}_top1"].sem()
            row[f"{kind}_top1_max"] = group[f"{kind}_top1"].max()
            row[f"{kind}_top5"] = group[f"{kind}_top5"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def _make_finetune(folder: Path, rng: np.random.Generator) -> None:
    curves, summary = [], []
    for dataset, chance, best in (("digits", 0.1, 0.86), ("faces", 0.5, 0.88)):
        for initialisation, speed, rate in (("predicted", 18, 0.01), ("random", 40, 0.03)):
            ends = []
            for architecture in range(4):
                for seed in range(3):
                    level = best + rng.normal(0, 0.03)
                    for step in range(0, 61, 10):
                        mean = chance + (level - chance) * (1 - np.exp(-step / speed))
                        top1 = float(np.clip(mean + rng.normal(0, 0.015), 0, 1))
                        curves.append([dataset, architecture, initialisation, seed, rate, step, top1])
                    ends.append(top1)
            error = float(np.std(ends, ddof=1) / len(ends) ** 0.5)
            steps = 30.0 if initialisation == "predicted" else None
            summary.append([dataset, initialisation, rate, 12, np.mean(ends), error, steps, 0.75])
    columns = ["dataset", "architecture", "initialisation", "seed", "learning_rate", "step", "test_top1"]
    write_parquet(folder / "curves.parquet", pd.DataFrame(curves, columns=columns))
    columns = ["dataset", "initialisation", "learning_rate", "runs", "test_top1", "test_top1_error"]
    columns += ["steps_to_target", "target_top1"]
    write_csv(folder / "summary.csv", pd.DataFrame(summary, columns=columns))


@pytest.fixture(scope="module")
def results_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("run") / "results")


@pytest.fixture
def results(results_of_a_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(results_of_a_run, tmp_path / "results"))


@pytest.fixture(scope="module")
def page(results_of_a_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = read_results(results_of_a_run)
    return write_report(results, PARAMS, provenance(results, PARAMS), tmp_path_factory.mktemp("report"))


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    if path.suffix == ".parquet":
        write_parquet(path, change(pd.read_parquet(path)))
    else:
        write_csv(path, change(pd.read_csv(path)))


def refusal(results: Path) -> str:
    with pytest.raises(UserError) as error:
        read_results(results)
    message = str(error.value)
    assert message.count("\n") < 3, "at most three lines"
    return message


# The inputs


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("generate/manifest.json", "generate"),
        ("train/history.csv", "train"),
        ("train/metrics.json", "train"),
        ("train/checkpoint", "train"),
        ("evaluate/architectures.parquet", "evaluate"),
        ("evaluate/summary.csv", "evaluate"),
        ("finetune/curves.parquet", "finetune"),
        ("finetune/summary.csv", "finetune"),
    ],
)
def test_a_missing_input_is_refused_with_its_name_and_the_stage_to_run(results: Path, file: str, stage: str):
    path = results / file
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert str(path) in refusal(results)
    assert f"dvc repro {stage}" in refusal(results)


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("train/history.csv", "learning_rate"),
        ("train/history.csv", "communication_seconds"),
        ("evaluate/architectures.parquet", "predicted_top1"),
        ("evaluate/architectures.parquet", "parameters"),
        ("evaluate/summary.csv", "random_top1_max"),
        ("finetune/curves.parquet", "test_top1"),
        ("finetune/summary.csv", "target_top1"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_row(results: Path, file: str, column: str, value: float):
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table[column] = table[column].astype(float)
        table.loc[2, column] = value
        return table

    edit(results / file, change)
    assert f"{column} = {value} in row 3 of {results / file}: must be finite" in refusal(results)


def test_a_step_that_dropped_all_its_architectures_is_left_out_and_counted(results: Path):
    path = results / "train" / "history.csv"

    def change(table: pd.DataFrame, dropped: int) -> pd.DataFrame:
        table.loc[7, ["loss", "top1"]] = np.nan
        table.loc[7, "dropped"] = dropped
        return table

    edit(path, lambda table: change(table, dropped=8))
    read = read_results(results)
    assert "1 step without a finite loss left out" in report_plots(read)["training"].caption
    rows = dict(report_tables(read, PARAMS)["training"].rows)
    assert rows["dropped"] == "8 architectures, whose loss was not finite"
    edit(path, lambda table: change(table, dropped=0))
    assert "loss = nan in row 8" in refusal(results)


def test_a_metric_that_is_not_finite_is_refused(results: Path):
    path = results / "train" / "metrics.json"
    path.write_text(path.read_text().replace('"steps": 3000', '"steps": NaN'))
    assert f"steps = nan in {path}: must be finite" in refusal(results)


def test_an_accuracy_in_percent_is_refused(results: Path):
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table.assign(random_top1=table["random_top1"] * 100))
    assert "must be a share, 0 to 1" in refusal(results)


def test_a_missing_column_is_refused_with_its_name(results: Path):
    path = results / "finetune" / "summary.csv"
    edit(path, lambda table: table.drop(columns="runs"))
    assert f"{path} has no column runs" in refusal(results)


def test_a_table_without_rows_is_refused(results: Path):
    path = results / "train" / "history.csv"
    edit(path, lambda table: table[:0])
    assert f"{path} has no rows" in refusal(results)


@pytest.mark.parametrize("file", ["evaluate/architectures.parquet", "train/metrics.json", "train/history.csv"])
def test_a_damaged_file_is_refused_with_its_name(results: Path, file: str):
    (results / file).write_bytes(b"")
    assert str(results / file) in refusal(results)


def test_a_summary_of_other_architectures_is_refused(results: Path):
    path = results / "evaluate" / "summary.csv"
    edit(path, lambda table: table.assign(predicted_top1=table["predicted_top1"] + 0.2))
    assert "predicted_top1 of split bn_free is" in refusal(results)


def test_a_summary_without_a_split_is_refused(results: Path):
    edit(results / "evaluate" / "summary.csv", lambda table: table[table["split"] != "deep"])
    assert "summary.csv has the splits" in refusal(results)


def test_an_evaluation_without_split_test_is_refused(results: Path):
    for file in ("architectures.parquet", "summary.csv"):
        edit(results / "evaluate" / file, lambda table: table[table["split"] != "test"])
    assert "no architecture of split test" in refusal(results)


def test_splits_come_in_the_order_of_the_design(results_of_a_run: Path):
    accuracy = read_results(results_of_a_run).accuracy
    assert list(accuracy["split"]) == ["test", "wide", "deep", "dense", "bn_free", "predefined"]


# What is said


def test_the_headline_counts_the_gain_over_random_initialisation(results_of_a_run: Path):
    results = read_results(results_of_a_run)
    test = results.test
    gain = 100 * (test["predicted_top1"] - test["random_top1"])
    assert "100 architectures" in headline(results)
    assert f"{gain:.1f} points more than with random initialisation" in headline(results)


def test_the_headline_admits_a_gain_within_the_errors(results: Path):
    edit(
        results / "evaluate" / "architectures.parquet",
        lambda table: table.assign(predicted_top1=table["random_top1"]),
    )
    architectures = pd.read_parquet(results / "evaluate" / "architectures.parquet")
    write_csv(results / "evaluate" / "summary.csv", summary_of(architectures))
    assert "not distinguishable from random initialisation" in headline(read_results(results))


def test_architectures_without_finite_logits_are_counted_not_hidden(results: Path):
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


def test_a_split_of_one_architecture_has_no_standard_error(results: Path):
    path = results / "evaluate" / "architectures.parquet"
    edit(path, lambda table: table[table["index"] == 0])
    write_csv(results / "evaluate" / "summary.csv", summary_of(pd.read_parquet(path)))
    read = read_results(results)
    assert "1 architecture that" in headline(read)
    text = accuracy_table(read.accuracy, read.architectures).markdown() + str(headline_numbers(read))
    assert "nan" not in text
    assert "±" not in text


def test_a_target_that_was_never_reached_is_said_so(results_of_a_run: Path):
    rows = finetuning_table(read_results(results_of_a_run).finetuning).rows
    assert [row[5] for row in rows] == ["30", "not reached", "30", "not reached"]


def test_best_and_worst_are_ranked_and_small_splits_are_listed_whole(results_of_a_run: Path):
    tables = extremes(read_results(results_of_a_run).architectures)
    assert [row[0] for row in tables["test"].rows] == ["1", "2", "3", "98", "99", "100"]
    accuracies = [float(row[3]) for row in tables["test"].rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {row[1] for row in tables["predefined"].rows} == {"resnet50", "vit", "darts"}


def test_a_markdown_table_has_one_line_a_row_and_escapes_bars():
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
def test_durations_have_two_units(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (12_300, "12.3 k"), (999_600, "1 M"), (2.5e9, "2.5 G")])
def test_counts_have_three_digits(number: float, text: str):
    assert plots.short_count(number) == text


def test_the_provenance_says_whether_code_or_settings_differ_from_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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


# The plots


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_the_accuracy_plot_prints_the_mean_of_each_split(results_of_a_run: Path, width: float):
    results = read_results(results_of_a_run)
    (axes,) = plots.accuracy_by_split(results.architectures, results.chance, width).axes
    printed = [text.get_text() for text in axes.texts]
    means = results.accuracy[["predicted_top1", "random_top1"]].to_numpy().ravel()
    assert printed == [f"{100 * mean:.1f}" for mean in means]
    assert axes.get_yticklabels()[0].get_text() == "test\nn = 100"


def test_each_drop_of_the_learning_rate_is_marked(results_of_a_run: Path):
    results = read_results(results_of_a_run)
    loss, _ = plots.training_curves(results.history, results.chance).axes
    vertical = [line.get_xdata()[0] for line in loss.lines if len(set(line.get_xdata())) == 1]
    assert vertical == [2011, 2491]


def test_a_huge_loss_is_cut_off_and_printed(results_of_a_run: Path):
    results = read_results(results_of_a_run)
    history = results.history.copy()
    history.loc[5, "loss"] = 480.0
    loss, _ = plots.training_curves(history, results.chance).axes
    assert loss.get_ylim()[1] < 5
    assert loss.texts[0].get_text() == "highest: 480, not shown"


def test_the_parts_of_a_step_add_up_to_the_step(results_of_a_run: Path):
    history = read_results(results_of_a_run).history
    parts = plots.step_parts(history)
    assert sum(parts.values()) == pytest.approx(history["step_seconds"].mean())
    (axes,) = plots.time_of_a_step(history).axes
    assert axes.patches[-1].get_x() + axes.patches[-1].get_width() == pytest.approx(sum(parts.values()))


def test_smoothing_keeps_a_constant_curve_and_its_length():
    values = pd.Series(np.full(250, 0.3))
    window = plots.smoothing_window(len(values))
    assert window == 5
    np.testing.assert_allclose(plots.smoothed(values, window), values)


def test_a_single_run_of_one_step_can_be_drawn(results_of_a_run: Path):
    results = read_results(results_of_a_run)
    plots.training_curves(results.history[:1], results.chance)
    plots.time_of_a_step(results.history[:1])
    one_run = results.curves.query("architecture == 0 and seed == 0 and dataset == 'digits'")
    (axes,) = plots.finetuning_curves(one_run, {"digits": 0.1}).axes
    assert axes.get_title(loc="left") == "digits"


def test_an_svg_takes_its_colours_from_the_page_and_has_identifiers_of_its_own(results_of_a_run: Path):
    history = read_results(results_of_a_run).history
    first, second = (plots.inline_svg(plots.time_of_a_step(history), name, 'a "b" <c>') for name in ("x", "y"))
    assert not re.search(r"#[0-9a-f]{6}\b", first)
    assert "var(--predicted)" in first
    assert 'aria-label="a &quot;b&quot; &lt;c>"' in first
    identifiers = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert identifiers[0] and not identifiers[0] & identifiers[1]
    references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', first))
    assert references <= identifiers[0]


# The page


def test_the_report_has_the_page_the_plots_and_the_tables_of_the_readme(page: Path):
    names = {path.name for path in page.parent.iterdir()}
    figures = {f"{name}.png" for name in ("accuracy", "size", "training", "time", "finetuning")}
    assert names == {"index.html", "accuracy.md", "finetuning.md", "training.md", *figures}
    with Image.open(page.parent / "accuracy.png") as image:
        assert image.width == 1440


def test_the_page_needs_nothing_from_elsewhere(page: Path):
    html = page.read_text()
    addresses = re.findall(r'(?:\b(?:src|href|action)=|url\(|@import)\s*["\']?([^"\')\s>]+)', html)
    assert {address for address in addresses if not address.startswith(("#", "data:"))} == set()
    assert "<script" not in html


def test_the_page_names_settings_versions_and_the_published_figures(page: Path):
    html = page.read_text()
    for text in (
        "train.learning_rate",
        "Python 3",
        "ray 2",
        "Published on CIFAR-10",
        "66.9 / 77.1",
    ):
        assert text in html


def test_names_of_data_sets_are_escaped(results_of_a_run: Path):
    results = read_results(results_of_a_run)
    params = PARAMS.model_copy(update={"dataset": "photos/<b>&co"})
    plot = {"caption": "", "wide": "", "narrow": ""}
    figures = dict.fromkeys(report_plots(results), plot)
    html = render(results, params, {"code": "<i>"}, report_tables(results, params), figures)
    assert "photos/&lt;b&gt;&amp;co" in html
    assert "<i>" not in html


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_the_headline_and_the_plots_that_fit_its_width(page: Path, width: int, tmp_path: Path):
    # The script runs after the page is laid out, and leaves what it measures in the title.
    probe = """<script>addEventListener("load", () => {
      const plots = [...document.querySelectorAll("figure svg")];
      const shown = plots.filter(svg => svg.getBoundingClientRect().width > 100);
      document.title = JSON.stringify({
        plots: plots.length,
        shown: shown.length,
        labels: Math.min(...shown.map(svg => svg.querySelectorAll("text").length)),
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        width: innerWidth,
      });
    })</script>"""
    copy = tmp_path / "index.html"
    copy.write_text(page.read_text() + probe)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, "the page logs errors"
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    seen = json.loads(title[1].replace("&quot;", '"'))
    assert seen.pop("labels") > 5
    assert seen == {"plots": 10, "shown": 5, "overflow": 0, "width": width}
    body = re.sub(r"<[^>]+>", " ", done.stdout[done.stdout.index("<body") :])
    assert "The hypernetwork predicted all parameters of 100 architectures" in body


@pytest.mark.slow
def test_the_stage_logs_the_page_and_its_tables_and_ends_the_pipeline_run(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    report(PARAMS)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PARAMS.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (stage,) = [run for run in runs if run.info.run_name == "report"]
    logged = {file.path for file in client.list_artifacts(stage.info.run_id)}  # folders
    assert logged == {"report", "tables"}
    assert (tmp_path / "results" / "report" / "index.html").is_file()


def test_the_stage_refuses_bad_inputs_before_it_starts_a_run(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (results / "finetune" / "curves.parquet").unlink()
    with pytest.raises(UserError, match="dvc repro finetune"):
        report(PARAMS)
    assert not (tmp_path / "mlflow.db").exists()
