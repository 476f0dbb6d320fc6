"""Stage `study`: one variant of the hypernetwork with one seed, trained in the study's time and measured.

DVC runs it for each of `study.variants` with each of `study.seeds`. All of them have the same time, architectures and
images, and are measured on the same first architectures of each split. So their results compare in pairs. The time is
that of the training steps: a short run measures the seconds per step, from which the number of steps follows.
"""

from __future__ import annotations

import pandas as pd
from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import (
    clear_task_cache,
    keep_result,
    named_when_interrupted,
    read_task_cache,
    task_cache_folder,
)
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_bits, print_table
from pipeline.evaluation.bits import bits_a_byte
from pipeline.evaluation.initialisations import HEADLINE, INITIALISATIONS
from pipeline.evaluation.measurement import measure_all
from pipeline.evaluation.networks import evaluated_candidates, evaluated_splits
from pipeline.evaluation.tables import ArchitectureScores
from pipeline.images.dataset import Images
from pipeline.images.load import load_images
from pipeline.images.subsets import without_train_part
from pipeline.params import Params, StudySettings, VariedSettings, flat_settings
from pipeline.results import results_folder
from pipeline.storage.tables import write_json, write_parquet
from pipeline.tracking.mlflow_runs import stage_run
from pipeline.training.hypernetwork_training import TrainedHypernetwork, trained_hypernetwork
from pipeline.training.job import RunSettings
from pipeline.training.pace import seconds_per_step, steps_within
from pipeline.training.run import require_resources
from pipeline.training.step_loader import require_first_step

STUDY_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be measured differently

PACE = "seconds_per_step"
"""The name of the task that measures the pace of training."""


STUDY_RUNS = "params.variant LIKE '%'"
"""The filter that finds the runs of studies in MLflow: no other run has a parameter of this name."""


def study(params: Params, variant: str, seed: int) -> None:
    """Train a variant with a seed, measure it, and write `results/study/<variant>-<seed>/`.

    Raises:
        UserError: there is no such variant, the settings do not fit the data or the cluster, or the run has diverged.
        Terminated: SIGTERM came before the last step.
    """
    own = params.of_variant(variant, seed)
    store = ArchitectureStore(params.storage)
    require_first_step(RunSettings.of(own), store)
    varied = own.model_dump(include=set(VariedSettings.model_fields))
    with (
        stage_run(
            f"study-{variant}-{seed}",
            params.model_dump(),
            experiment=params.tracking.experiment,
            own={"variant": variant, "seed": seed, **varied},
        ) as run,
        ray_cluster(params.cluster.address, params.cluster.cpus),
    ):
        require_resources(params.workers)
        images = load_images(params.dataset, params.images, params.storage)
        paces = _task_folder(own, store, images, PACE)
        pace = _pace(own, store, images, paces)
        own = own.with_train(steps_within(params.study.minutes, pace))
        scored = _task_folder(own, store, images, "scores")
        with trained_hypernetwork(own, store, images, run) as trained, named_when_interrupted(scored):
            scores = _measured(own, store, images, trained, scored)
            results = results_folder(f"study/{variant}-{seed}")
            trained.write(results)
            write_parquet(results / "architectures.parquet", scores)
            bits = bits_a_byte(scores, "initialisation", images.bytes_per_token) if params.is_text else None
            figures = _figures(scores, bits)
            write_json(results / "scores.json", figures)
            run.log_table(scores, "architectures")
            run.log_metrics(figures)
            run.log_metrics({"steps": trained.metrics.steps, "seconds_per_step": pace})
            # Split test is the last axis, whose accuracy colours the lines.
            axes = chart_parameters(params.study), [f"{split}_top1" for split in reversed(evaluated_splits(store))]
            run.share_study_view(STUDY_RUNS, *axes, curves=("loss", "top1"))
    for folder in (paces, scored):
        clear_task_cache(folder)
    _print_scores(variant, seed, trained, scores)
    if bits is not None:
        print_bits("Bits per byte of test text", bits, "initialisation")


def chart_parameters(settings: StudySettings) -> list[str]:
    """Return the parameters of a study's runs that differ between them: variant, seed, and what variants change."""
    changed = [key for name in settings.variants for key in flat_settings(settings.changes[name])]
    return list(dict.fromkeys(["variant", "seed", *changed]))


def _task_folder(params: Params, store: ArchitectureStore, images: Images, tasks: str) -> str:
    """Return the folder where the variant keeps its finished tasks of one kind."""
    measured = [params.study.minutes, params.study.architectures, params.study.images, params.evaluate.model_dump()]
    learned = [RunSettings.of(params).model_dump(), store.digest, images.settings_hash]
    return task_cache_folder(params.storage, "studies", [STUDY_FORMAT, tasks, measured, learned])


def _pace(params: Params, store: ArchitectureStore, images: Images, folder: str) -> float:
    """Return the seconds per step, as this run measured them when it began."""
    kept = read_task_cache(folder)
    if PACE in kept:
        return float(kept[PACE])
    pace = seconds_per_step(params, store, images)
    keep_result(folder, PACE, pace)
    return pace


def _measured(
    params: Params, store: ArchitectureStore, images: Images, trained: TrainedHypernetwork, folder: str
) -> DataFrame[ArchitectureScores]:
    """Return a row for each measured architecture, with predicted parameters."""
    settings = params.evaluate.model_copy(update={"images": params.study.images, "running_statistics": 0})
    rows = measure_all(
        evaluated_candidates(store, params.evaluate, params.images.size, params.study.architectures),
        {HEADLINE: INITIALISATIONS[HEADLINE]},
        trained.ghn.eval(),
        without_train_part(images, settings.images),
        settings,
        params.seed,
        folder,
    )
    return ArchitectureScores.validate(pd.DataFrame(rows))


def _figures(scores: DataFrame[ArchitectureScores], bits: pd.DataFrame | None) -> dict[str, float]:
    """Return the mean top-1 of each split, by name, and of text the mean bits per byte."""
    figures = {f"{split}_top1": top1 for split, top1 in scores.groupby("split", sort=False)["top1"].mean().items()}
    if bits is not None:
        figures |= {f"{row.split}_bits": row.bits for row in bits.itertuples()}
    return figures


def _print_scores(variant: str, seed: int, trained: TrainedHypernetwork, scores: DataFrame[ArchitectureScores]) -> None:
    splits = scores.groupby("split", sort=False)["top1"]
    rows = [
        {"split": str(split), "networks": str(len(top1)), "top-1": percent(top1.mean(), top1.sem())}
        for split, top1 in splits
    ]
    print_table(f"{variant}, seed {seed}, {trained.metrics.steps:,} steps: test accuracy in %", rows)
