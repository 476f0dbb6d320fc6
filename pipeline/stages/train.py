"""Stage `train`: Ray Train workers share each step's meta-batch and train one hypernetwork.

What a worker does is in `pipeline.training.loop`, and how the workers are run in `pipeline.training.run`.
"""

from __future__ import annotations

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.images.load import load_images
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.tracking.mlflow_runs import StageRun, stage_run
from pipeline.training.hypernetwork_training import TrainedHypernetwork, trained_hypernetwork
from pipeline.training.job import RunSettings
from pipeline.training.run import require_resources
from pipeline.training.step_loader import require_first_step
from pipeline.training.validation import split_off_held_out

LISTED_METRICS = ("loss", "top1", "seconds", "val_top1")
"""Metrics that MLflow shows in its list of runs."""

TAGS = ("precision", "workers", "device")
"""Metrics that are tags in MLflow, because they say how the run was computed."""


def train(params: Params) -> None:
    """Train a hypernetwork, or go on where an interrupted run with the same settings stopped.

    Raises:
        UserError: the settings do not fit the data or the cluster, the run cannot go on, or it has diverged.
        Terminated: SIGTERM came before the last step.
    """
    store = ArchitectureStore(params.storage)
    require_first_step(RunSettings.of(params), store)
    with (
        stage_run("train", params.model_dump(), experiment=params.tracking.experiment) as run,
        ray_cluster(params.cluster.address, params.cluster.cpus),
    ):
        require_resources(params.workers)
        images = load_images(params.dataset, params.images, params.storage)
        split_off_held_out(images, params.train.validation)  # raises UserError before any worker starts
        run.log_data("architectures", store.digest)
        run.log_data(images.name, images.settings_hash)
        with trained_hypernetwork(params, store, images, run) as trained:
            trained.write(results_folder("train"))
            _log_results(run, trained)


def _log_results(run: StageRun, trained: TrainedHypernetwork) -> None:
    """Log the metrics and the files of results/train to MLflow, and register the hypernetwork there."""
    folder, metrics = results_folder("train"), trained.present_metrics()
    run.set_tags({name: metrics.pop(name) for name in TAGS})
    run.summary({f"train_{name}": metrics[name] for name in LISTED_METRICS if name in metrics})
    run.log_metrics({f"train_{name}": value for name, value in metrics.items() if name not in LISTED_METRICS})
    run.log_artifact(folder / "history.csv")
    run.log_artifact(folder / "dropped.csv")
    run.log_ghn(folder / "checkpoint")
