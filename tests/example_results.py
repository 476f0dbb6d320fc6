"""Made-up results of all stages, which look like those of a real run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ghn import GHN, GHNConfig, sample_architecture
from ghn.deepnets1m.traits import TRAITS
from pipeline.evaluation.budgets import compare_budgets
from pipeline.evaluation.common_architectures import accuracies_of, compare_initialisations, worth_by_split
from pipeline.evaluation.detection_runs import as_png
from pipeline.evaluation.detection_tables import DetectionCurves, summarise_detection
from pipeline.evaluation.finetuning import measured_steps
from pipeline.evaluation.property_tables import PropertyScores
from pipeline.evaluation.similarity import correlate_accuracy
from pipeline.evaluation.stored_sources import StoredSource
from pipeline.evaluation.study_summary import Cell, summarise_study
from pipeline.evaluation.summaries import summarise_architectures, summarise_curves
from pipeline.evaluation.traits import EvaluatedNetworks, trait_effects
from pipeline.reporting.extremes import ExtremesGallery, extreme_architectures, rank_pictures
from pipeline.reporting.graph_pictures.gallery import render_gallery
from pipeline.reporting.leaderboard import LeaderboardRow
from pipeline.reporting.page import recipe
from pipeline.reporting.read_results import Results
from pipeline.reporting.results_page import PageParts, ReportSettings
from pipeline.stages.report import origin_of
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.training.adaptation_tables import ADAPTED, ALONE, SCRATCH, AdaptationScores, summarise_adaptation
from pipeline.training.conditioning_tables import SINGLE, TOGETHER, ConditioningScores, summarise_conditioning
from pipeline.training.tables import TIME_PARTS

# split: architectures, mean predicted top-1, millions of parameters (smallest, largest)
SPLITS = {
    "test": (100, 0.29, (0.02, 2)),
    "wide": (30, 0.24, (0.3, 30)),
    "deep": (30, 0.22, (0.05, 9)),
    "dense": (30, 0.27, (0.05, 5)),
    "bn_free": (30, 0.14, (0.02, 1.5)),
}


# initialisations beside those of the registry: mean top-1
OTHER_INITIALISATIONS = {"nearest": 0.18, "sgd": 0.42, "small_norm": 0.13}


def make_results(folder: Path, seed: int = 0, steps: int = 3000, others: Sequence[str] = ()) -> Path:
    """Write what the other stages write: a run that looks like a real one.

    `others` of `OTHER_INITIALISATIONS` are measured beside predicted parameters and random initialisation.
    """
    rng = np.random.default_rng(seed)
    _make_generate(folder / "generate", rng)
    _make_train(folder / "train", rng, steps)
    _make_evaluate(folder / "evaluate", rng, others)
    _make_finetune(folder / "finetune", rng, others)
    _make_adapt(folder / "adapt", rng)
    _make_condition(folder / "condition", rng)
    _make_detect(folder / "detect", rng)
    _make_study(folder / "compare")
    _make_comparison(folder, rng)
    _make_traits(folder / "evaluate", rng)
    _make_properties(folder / "properties")
    return folder


def _make_comparison(folder: Path, rng: np.random.Generator) -> None:
    """Write tables about training by SGD, of the first architectures of each split, and about distances."""
    evaluated = pd.read_parquet(folder / "evaluate" / "architectures.parquet")
    rows = [
        {
            "split": split,
            "index": index,
            "epochs": epochs,
            "top1": mean * share + rng.normal(0, 0.02),
            "train_seconds": 2.0 * epochs,
        }
        for split, (_, mean, _) in SPLITS.items()
        for index in range(6)
        for epochs, share in ((1, 0.8), (4, 1.3))
    ]
    trained = pd.DataFrame(rows)
    copied = [
        {"split": split, "index": index, "initialisation": name, "top1": mean * share, "share_copied": share}
        for split, (_, mean, _) in SPLITS.items()
        for index in range(8)
        for name, share in (("copy_wl", 0.9), ("copy_embedding", 0.75))
    ]
    sources = [StoredSource(index, "", "", "", 1, 0.4, 9.5, "") for index in range(4)]
    accuracies = accuracies_of(evaluated, trained)
    initialisations = compare_initialisations(accuracies, pd.DataFrame(copied), sources)
    write_csv(folder / "compare" / "initialisations.csv", initialisations)
    write_csv(folder / "compare" / "worth.csv", worth_by_split(accuracies, evaluated, trained))
    networks = evaluated.drop_duplicates(["split", "index"])[["split", "index"]]
    nearest = [networks.assign(by=by, similarity=rng.uniform(0.4, 1, len(networks))) for by in ("wl", "embedding")]
    similarity = pd.concat(nearest, ignore_index=True).assign(nearest=0)
    write_parquet(folder / "evaluate" / "similarity.parquet", similarity)
    write_csv(folder / "evaluate" / "similarity.csv", correlate_accuracy(evaluated, similarity))


def _make_traits(folder: Path, rng: np.random.Generator) -> None:
    """Write traits and embeddings of the networks; predictions are worse for those without norm."""
    evaluated = pd.read_parquet(folder / "architectures.parquet")
    networks = evaluated.drop_duplicates(["split", "index"])[["split", "index"]].reset_index(drop=True)
    shares = dict(zip(TRAITS, (0, 0.25, 0.1, 0.2, 0.05, 0.2), strict=True))
    traits = {name: rng.random(len(networks)) < share for name, share in shares.items()}
    components = {f"component_{number}": rng.normal(0, 3 - number, len(networks)) for number in range(3)}
    table = networks.assign(**traits, **components)
    table["norm_free"] = table["split"] == "bn_free"
    write_parquet(folder / "networks.parquet", EvaluatedNetworks.validate(table))
    write_csv(folder / "traits.csv", trait_effects(evaluated, table))


def example_parts(results: Results, settings: ReportSettings, seeds: LeaderboardRow | None = None) -> PageParts:
    """Return what the page shows beside the results."""
    return PageParts(origin_of(results, settings), recipe(), example_gallery(results), seeds)


def example_gallery(results: Results) -> ExtremesGallery:
    """Return pictures of other architectures in the places of the best and the worst."""
    rows = extreme_architectures(results.architectures)
    keys = [f"{row['split']}/{row['index']}" for row in rows.to_dict("records")]
    graphs = {key: sample_architecture(0, "train", 8 + number).graph(16, 10) for number, key in enumerate(keys)}
    return rank_pictures(rows, render_gallery(graphs), results.networks)


def _make_adapt(folder: Path, rng: np.random.Generator) -> None:
    """Write what hypernetworks learn from few images: the adapted one more than one from scratch."""
    rows = [
        {
            "dataset": "digits",
            "images_per_class": number,
            "start": start,
            "learning_rate": 0.003,
            "rate_is_inside": start != ALONE,
            "seed": seed,
            "architecture": architecture,
            "test_top1": mean + 0.01 * number + rng.normal(0, 0.02),
        }
        for number in (1, 10, 30)
        for start, mean in {ADAPTED: 0.5, SCRATCH: 0.15, ALONE: 0.45}.items()
        for seed in range(3)
        for architecture in range(4)
    ]
    scores = AdaptationScores.validate(pd.DataFrame(rows))
    cost = {ADAPTED: 25_600, SCRATCH: 25_600, ALONE: 19_200}
    seconds = {("digits", 10, ADAPTED): 31.0, ("digits", 10, SCRATCH): 30.0}
    write_csv(folder / "summary.csv", summarise_adaptation(scores, {"digits": 10}, {"digits": 30}, cost, seconds))


def _make_condition(folder: Path, rng: np.random.Generator) -> None:
    """Write what one hypernetwork for two data sets predicts for them and for a third."""
    rows = [
        {
            "dataset": dataset,
            "hypernetwork": hypernetwork,
            "is_learned": dataset != "digits",
            "seed": seed,
            "architecture": architecture,
            "test_top1": mean + rng.uniform(0, 0.04),
        }
        for hypernetwork, of_sets in {
            TOGETHER: {"mnist_5k": 0.6, "faces": 0.8, "digits": 0.45},
            SINGLE: {"mnist_5k": 0.62, "faces": 0.79},
        }.items()
        for dataset, mean in of_sets.items()
        for seed in range(3)
        for architecture in range(4)
    ]
    scores = ConditioningScores.validate(pd.DataFrame(rows))
    write_csv(folder / "summary.csv", summarise_conditioning(scores, {"mnist_5k": 10, "faces": 2, "digits": 10}))


def _make_detect(folder: Path, rng: np.random.Generator) -> None:
    """Write what detectors reach, those on predicted backbones sooner, and two scenes with what they find."""
    rows = [
        {
            "backbone": "resnet18",
            "initialisation": initialisation,
            "learning_rate": 0.05,
            "rate_is_inside": initialisation != "random",
            "seed": seed,
            "epoch": epoch,
            "ap": 0.5 * (reached := 0.6 * epoch / (epoch + delay) + rng.uniform(0, 0.02)),
            "ap50": reached,
        }
        for initialisation, delay in {"predicted": 2, "random": 5, "predicted_orthogonal": 3}.items()
        for seed in range(3)
        for epoch in range(1, 7)
    ]
    curves = DetectionCurves.validate(pd.DataFrame(rows))
    write_parquet(folder / "curves.parquet", curves)
    write_csv(folder / "summary.csv", summarise_detection(curves))
    pixels = np.zeros((2, 20, 28), np.uint8)
    pixels[:, 4:15, 6:13] = 200
    scene = {"png": as_png(np.stack([pixels[0]] * 3)), "boxes": [[6.0, 4.0, 13.0, 15.0]], "labels": [3]}
    right, wrong = ([[6.0, 4.0, 13.0, 14.0]], [3], [0.9]), ([[1.0, 4.0, 8.0, 14.0]], [5], [0.6])
    found = {"predicted": [right, right], "random": [wrong, right]}
    classes = [str(digit) for digit in range(10)]
    write_json(folder / "shown.json", {"classes": classes, "scenes": [scene] * 2, "found": {"resnet18": found}})


def _make_properties(folder: Path) -> None:
    """Write the scores of two properties, one of which has too few networks."""
    figures = {"tau": 0.5, "tau_low": 0.3, "tau_high": 0.7}
    lead = {"difference": 0.1, "difference_low": -0.1, "difference_high": 0.3}
    rows = []
    for features in ("embedding", "size", "graph"):
        own = {} if features == "embedding" else lead
        rows.append({"target": "sgd_1_top1", "features": features, "fitted": 40, "scored": 30, **figures, **own})
    for features in ("embedding", "size", "graph"):
        few = {"fitted": 2, "scored": 1, "reason": "too few networks"}
        rows.append({"target": "convergence_steps", "features": features, **few})
    write_csv(folder / "scores.csv", PropertyScores.validate(pd.DataFrame(rows)))


def _make_study(folder: Path) -> None:
    """Write a study of three variants and three seeds, one of which is worse than the first."""
    shifts = {"ghn2": 0.0, "mlp": -0.08, "no_dirac": 0.0}
    scores = {}
    for number, (variant, shift) in enumerate(shifts.items()):
        for seed in range(3):
            level, noise = np.random.default_rng(3), np.random.default_rng([number, seed])
            rows = [
                {"split": split, "index": i, "top1": mean + shift + level.normal(0, 0.02) + noise.normal(0, 0.01)}
                for split, (_, mean, _) in SPLITS.items()
                for i in range(10)
            ]
            scores[Cell(variant, seed)] = pd.DataFrame(rows)
    write_csv(folder / "study.csv", summarise_study(scores, dict.fromkeys(scores, 1200)))


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
    norm = 8 * rng.lognormal(0, 0.5, steps)
    history = pd.DataFrame(
        {
            "step": step,
            "loss": 2.32 - 0.55 * progress + 0.14 * settled * rng.standard_normal(steps),
            "top1": np.clip(0.1 + 0.21 * progress + 0.05 * settled * rng.standard_normal(steps), 0, 1),
            "architecture_norm_median": norm,
            "architecture_norm_p90": 6 * norm,
            "architecture_norm_max": 7 * norm * rng.lognormal(0.5, 0.8, steps),
            "dropped": 0,
            "graph_seconds": rng.normal(0.03, 0.004, steps),
            "wait_seconds": rng.exponential(0.004, steps),
            "hypernetwork_forward_seconds": rng.normal(0.08, 0.01, steps),
            "target_forward_seconds": rng.normal(0.34, 0.04, steps),
            "target_backward_seconds": rng.normal(0.6, 0.07, steps),
            "hypernetwork_backward_seconds": rng.normal(0.13, 0.01, steps),
            "communication_seconds": rng.normal(0.06, 0.01, steps),
            "imbalance": 1 + rng.exponential(0.05, steps),
            "learning_rate": np.select([step <= 0.67 * steps, step <= 0.83 * steps], [1e-3, 1e-4], 1e-5),
            "gradient_norm": rng.lognormal(0.4, 0.8, steps),
        }
    )
    measured = history[list(TIME_PARTS)].sum(axis=1)
    history["step_seconds"] = measured + rng.normal(0.03, 0.003, steps)
    history["images_per_second"] = 64 * 8 / history["step_seconds"]
    history["architectures_per_second"] = 8 / history["step_seconds"]
    validated = history[(step % 250 == 0) | (step == steps)].index
    history.loc[validated, "val_top1"] = 0.1 + 0.2 * progress[validated] + rng.normal(0, 0.008, len(validated))
    history.loc[validated, "val_loss"] = 2.36 - 0.5 * progress[validated] + rng.normal(0, 0.02, len(validated))
    write_csv(folder / "history.csv", history)
    write_csv(folder / "dropped.csv", pd.DataFrame(columns=["step", "index", "identity"]))
    metrics = {
        "loss": float(history["loss"].iloc[-50:].mean()),
        "top1": float(history["top1"].iloc[-50:].mean()),
        "steps": steps,
        "epochs": steps * 64 / 5000,
        "seconds": float(history["step_seconds"].sum()),
        "architectures_per_second": float(history["architectures_per_second"].mean()),
        "dropped": 0,
        "parameters": 2_319_000,
        "precision": "fp32",
        "workers": 2,
        "device": "cpu",
        "val_top1": float(history["val_top1"].max()),
        "best_step": int(history["step"][history["val_top1"].idxmax()]),
    }
    write_json(folder / "metrics.json", metrics)
    GHN(GHNConfig(num_classes=10, image_size=16, hidden=8, kernel=3)).save(folder / "checkpoint")


def _make_evaluate(folder: Path, rng: np.random.Generator, others: Sequence[str]) -> None:
    frames = []
    for split, (count, mean, (low, high)) in SPLITS.items():
        parameters = 1e6 * low * (high / low) ** rng.beta(2, 2.5, count)
        frames.append(_architectures(split, [""] * count, mean, parameters, rng, others))
    named = ["resnet50", "vit", "darts"]
    frames.append(_architectures("predefined", named, 0.2, np.array([23.6e6, 2.4e6, 1.1e6]), rng, others))
    architectures = pd.concat(frames, ignore_index=True)
    write_parquet(folder / "architectures.parquet", architectures)
    write_csv(folder / "summary.csv", summarise_architectures(architectures))


def _architectures(
    split: str, names: list[str], mean: float, parameters: np.ndarray, rng: np.random.Generator, others: Sequence[str]
) -> pd.DataFrame:
    """Return a row for each architecture and initialisation."""
    count = len(names)
    predicted = np.clip(rng.normal(mean, 0.055, count), 0.08, 0.9)
    random = np.clip(rng.normal(0.101, 0.016, count), 0.02, 0.9)
    networks = {
        "split": split,
        "index": np.arange(count),
        "name": names,
        "identity": [rng.bytes(12).hex() for _ in range(count)],
        "parameters": parameters.astype(int),
        "nodes": rng.integers(40, 400, count),
    }
    measured = {
        "predicted": (predicted, np.clip(0.5 + predicted, 0, 0.99), 2.4 - predicted),
        "random": (random, np.clip(0.4 + random, 0, 0.99), rng.normal(2.6, 0.1, count)),
    }
    seconds = rng.gamma(2.0, 0.4, count)
    for name in others:
        own_rng = np.random.default_rng(list(f"{name} {split}".encode()))
        top1 = np.clip(own_rng.normal(OTHER_INITIALISATIONS[name], 0.04, count), 0, 0.9)
        measured[name] = (top1, np.clip(0.45 + top1, 0, 0.99), 2.5 - top1)
    frames = [
        pd.DataFrame(
            {
                **networks,
                "initialisation": name,
                "top1": top1,
                "top5": top5,
                "loss": loss,
                "running_top1": np.where(np.arange(count) < 10, 0.95 * top1, np.nan),
                "initialise_seconds": 0.2 * seconds,
                "seconds": seconds,
            }
        )
        for name, (top1, top5, loss) in measured.items()
    ]
    return pd.concat(frames).sort_values("index", kind="stable")


def _make_finetune(folder: Path, rng: np.random.Generator, others: Sequence[str]) -> None:
    speeds = {"predicted": (9, 0.1), "random": (20, 0.033)}  # steps of a decay by e, learning rate
    speeds |= {name: (12 + 4 * position, 0.1) for position, name in enumerate(others)}
    bests = {("digits", 1): 0.4, ("digits", 10): 0.75, ("digits", 100): 0.9, ("faces", 1): 0.6, ("faces", 10): 0.9}
    rows = []
    for (dataset, number), best in bests.items():
        chance = 0.1 if dataset == "digits" else 0.5
        for initialisation, (speed, rate) in speeds.items():
            own_rng = np.random.default_rng(list(initialisation.encode())) if initialisation in others else rng
            for architecture, seed in product(range(4), range(3)):
                level = best + own_rng.normal(0, 0.03)
                for step in sorted(measured_steps(60, 20)):
                    mean = chance + (level - chance) * (1 - np.exp(-step / speed))
                    top1 = float(np.clip(mean + own_rng.normal(0, 0.015), 0, 1))
                    rows.append(
                        {
                            "dataset": dataset,
                            "images_per_class": number,
                            "architecture": architecture,
                            "initialisation": initialisation,
                            "learning_rate": rate,
                            "seed": seed,
                            "rate_is_inside": initialisation != "random",
                            "step": step,
                            "test_top1": top1,
                        }
                    )
    write_curves(folder, pd.DataFrame(rows))


def write_curves(folder: Path, curves: pd.DataFrame) -> None:
    """Write what stage finetune makes of its curves."""
    write_parquet(folder / "curves.parquet", curves)
    write_csv(folder / "summary.csv", summarise_curves(curves, {"digits": 10, "faces": 2}))
    write_csv(folder / "budgets.csv", compare_budgets(curves))


def edit_scores(results: Path, initialisation: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the rows of an initialisation in stage evaluate's table, and summarise the table again."""
    path = results / "evaluate" / "architectures.parquet"
    table = pd.read_parquet(path)
    own = table["initialisation"] == initialisation
    table[own] = change(table[own].copy())
    write_parquet(path, table)
    write_csv(results / "evaluate" / "summary.csv", summarise_architectures(table))


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the table in a file."""
    if path.suffix == ".parquet":
        write_parquet(path, change(pd.read_parquet(path)))
    else:
        write_csv(path, change(pd.read_csv(path)))


def drop(results: Path, step: int, identities: list[str], *, all_of_them: bool = False) -> None:
    """Drop architectures in a step of the training; if they are all of its architectures, it has no loss."""

    def change(history: pd.DataFrame) -> pd.DataFrame:
        row = history["step"] == step
        history.loc[row, "dropped"] += len(identities)
        if all_of_them:
            history.loc[row, ["loss", "top1", *history.filter(like="norm")]] = np.nan
        return history

    rows = pd.DataFrame({"step": step, "index": range(len(identities)), "identity": identities})
    edit(results / "train" / "history.csv", change)
    edit(results / "train" / "dropped.csv", lambda table: pd.concat([table, rows]))


def without_validation(results: Path) -> None:
    """Leave out what a run without validation does not have."""
    edit(results / "train" / "history.csv", lambda table: table.drop(columns=["val_top1", "val_loss"]))
    path = results / "train" / "metrics.json"
    metrics = json.loads(path.read_text())
    write_json(path, {name: value for name, value in metrics.items() if name not in ("val_top1", "best_step")})
