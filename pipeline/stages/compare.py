"""Stage `compare`: what others measured beside each other, on the same architectures, with errors and tests in pairs.

- The variants of the study, over their seeds.
- Predicted parameters, other initialisations, copies of trained networks, and training by SGD.
- What a prediction is worth, in epochs of SGD.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pandera.typing import DataFrame

from pipeline.console import percent, print_table
from pipeline.contracts import read_raw_table, read_table
from pipeline.evaluation.common_architectures import accuracies_of, compare_initialisations, worth_by_split
from pipeline.evaluation.stored_sources import read_sources
from pipeline.evaluation.study_summary import SHIFTED, Cell, StudyScores, summarise_study
from pipeline.evaluation.tables import ArchitectureScores, CopyScores, SgdScores
from pipeline.evaluation.worth import PredictionWorth, epochs_in_words
from pipeline.params import Params, StudySettings
from pipeline.results import RESULTS, results_folder
from pipeline.storage.tables import write_csv, write_json
from pipeline.tracking.mlflow_runs import stage_run

LISTED_SPLITS = ("test", SHIFTED)
"""The splits whose means in the study are metrics of DVC and MLflow."""


def compare(params: Params) -> None:
    """Compare what the stages before have measured, and write `results/compare/`.

    Raises:
        UserError: the results of a stage are missing or damaged.
    """
    with stage_run("compare", params.model_dump(), experiment=params.tracking.experiment) as run:
        study = study_of(params.study, RESULTS / "study")
        evaluated = read_table(RESULTS / "evaluate" / "architectures.parquet", "evaluate", ArchitectureScores)
        trained = read_table(RESULTS / "sgd" / "scores.parquet", "sgd", SgdScores)
        copies = read_table(RESULTS / "copies" / "architectures.parquet", "copies", CopyScores)
        accuracies = accuracies_of(evaluated, trained)
        initialisations = compare_initialisations(accuracies, copies, read_sources())
        worth = worth_by_split(accuracies, evaluated, trained)
        folder = results_folder("compare")
        for name, table in (("study", study), ("initialisations", initialisations), ("worth", worth)):
            write_csv(folder / f"{name}.csv", table)
            run.log_table(table, name)
        variants, epochs = metrics_of(study), worth_metrics(worth)
        write_json(folder / "metrics.json", {"study": variants, "worth_epochs": epochs})
        run.log_metrics({f"{variant}_{name}": top1 for variant, own in variants.items() for name, top1 in own.items()})
        run.summary({f"{split}_worth_epochs": value for split, value in epochs.items()})
    _print_study(study)
    _print_worth(worth)


def study_of(settings: StudySettings, folder: Path) -> DataFrame[StudyScores]:
    """Return a row for each variant and split, from the results of all runs below a folder.

    Raises:
        UserError: the results of a run are missing or damaged.
    """
    scores, steps = {}, {}
    for cell in (Cell(variant, seed) for variant in settings.variants for seed in settings.seeds):
        place = folder / f"{cell.variant}-{cell.seed}"
        scores[cell] = read_table(place / "architectures.parquet", "study", ArchitectureScores)
        history = read_raw_table(place / "history.csv", "study")
        steps[cell] = int(history["step"].iloc[-1])
    return summarise_study(scores, steps)


def metrics_of(summary: DataFrame[StudyScores]) -> dict[str, dict[str, float]]:
    """Return the mean accuracies of each variant on split test and out of distribution, by names without blanks."""
    rows = summary[summary["split"].isin(LISTED_SPLITS)].to_dict("records")
    metrics: dict[str, dict[str, float]] = {row["variant"]: {} for row in rows}
    for row in rows:
        metrics[row["variant"]][f"{row['split'].replace(' ', '_')}_top1"] = row["top1"]
    return metrics


def worth_metrics(worth: DataFrame[PredictionWorth]) -> dict[str, float]:
    """Return what a prediction is worth by split, where that lies within the epochs that were run."""
    return {row["split"]: row["epochs"] for row in worth.to_dict("records") if math.isfinite(row["epochs"])}


def _print_study(summary: DataFrame[StudyScores]) -> None:
    table = summary.set_index(["variant", "split"])
    splits = list(dict.fromkeys(summary["split"]))
    rows = []
    for variant in dict.fromkeys(summary["variant"]):
        own = {split: table.loc[(variant, split)] for split in splits}
        cells = {split: percent(row["top1"], row["top1_error"]) for split, row in own.items()}
        rows.append({"variant": variant, "steps": f"{own[splits[0]]['steps']:,.0f}", **cells})
    print_table("Study: test accuracy in %, mean over seeds", rows)


def _print_worth(worth: DataFrame[PredictionWorth]) -> None:
    rows = [
        {
            "split": row["split"],
            "networks": str(row["architectures"]),
            "predicted": percent(row["predicted_top1"]),
            f"SGD, {row['most_epochs']} epochs": percent(row["sgd_top1"]),
            "worth, epochs": worth_in_words(row),
            "seconds": f"{row['predict_seconds']:.2f}",
            "an epoch takes": f"{row['epoch_seconds']:.1f} s",
        }
        for row in worth.to_dict("records")
    ]
    print_table("What a prediction is worth: test accuracy in %", rows)


def worth_in_words(row: Any) -> str:
    """Return what a prediction is worth with its interval, such as "1.4 (0.9 to 2.2)", or "more than 5"."""
    low, middle, high = (
        epochs_in_words(row[name], row["most_epochs"], "more than ") for name in ("epochs_low", "epochs", "epochs_high")
    )
    return middle if low == high else f"{middle} ({low} to {high})"
