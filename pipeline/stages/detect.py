"""Stage `detect`: is training a detector better started from a backbone with predicted parameters than at random?

Faster R-CNN is trained on scenes from each initialisation of its backbone, with the same budget, the same scenes in the
same order and the same random parts. Each has a learning rate of its own, chosen on held-out scenes with the first
seed. ResNets of torchvision start from its checkpoint too, if this machine has one; nothing is downloaded.
"""

from __future__ import annotations

from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, named_when_interrupted, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_table
from pipeline.evaluation.detection_runs import DetectSetup, backbone_initialisations, backbones_of, detect_all
from pipeline.evaluation.detection_tables import DetectionSummary, detection_metrics, summarise_detection
from pipeline.evaluation.detectors import trained_ghn_of_modules
from pipeline.images.scene_sets import load_scenes
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import stage_run

DETECTION_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be trained differently


def detect(params: Params) -> None:
    """Train detectors from each initialisation of their backbones and write `results/detect/`.

    Raises:
        UserError: the checkpoint is missing or damaged, or the scenes are.
    """
    settings = params.detect
    with stage_run("detect", params.model_dump(), experiment=params.tracking.experiment) as run:
        ghn, checkpoint = trained_ghn_of_modules()
        scenes = load_scenes(settings, params.storage, params.seed)
        run.log_data(settings.dataset, scenes.digest)
        backbones = backbones_of(settings, ArchitectureStore(params.storage), params.evaluate)
        setup = DetectSetup(settings, params.seed, backbones, scenes)
        folder = task_cache_folder(params.storage, "detection", [DETECTION_FORMAT, checkpoint])
        with named_when_interrupted(folder), ray_cluster(params.cluster.address, params.cluster.cpus):
            detected = detect_all(setup, backbone_initialisations(settings), ghn, folder)
        summary = summarise_detection(detected.curves)
        results = results_folder("detect")
        write_parquet(results / "curves.parquet", detected.curves)
        write_csv(results / "summary.csv", summary)
        write_csv(results / "learning_rates.csv", detected.rates)
        write_json(results / "shown.json", detected.shown(scenes.test))
        write_json(results / "metrics.json", detection_metrics(summary))
        run.log_table(detected.curves, "curves")
        run.log_table(summary, "summary")
        run.log_table(detected.rates, "learning_rates")
        run.summary(detection_metrics(summary))
    clear_task_cache(folder)
    _print_summary(summary)


def _print_summary(summary: DataFrame[DetectionSummary]) -> None:
    rows = [
        {
            "backbone": row.backbone,
            "start": row.initialisation,
            "rate": f"{row.learning_rate:g}",
            f"AP50, epoch {row.early_epoch}": percent(row.early_ap50, row.early_ap50_error),
            f"AP50, epoch {row.epochs}": percent(row.ap50, row.ap50_error),
            "AP": percent(row.ap, row.ap_error),
        }
        for row in summary.itertuples()
    ]
    print_table("Average precision in % on test scenes", rows)
