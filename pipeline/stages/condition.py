"""Stage `condition`: one hypernetwork for several data sets, told by a few images which one it predicts for.

It is compared with a hypernetwork for each data set, which has as many steps on it, and is measured on data sets that
it has never learned from, without a training step there: statistics of a few images of each class are all that it
gets.
"""

from __future__ import annotations

from pandera.typing import DataFrame

from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.cached_tasks import clear_task_cache, named_when_interrupted, task_cache_folder
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.console import percent, print_table
from pipeline.evaluation.first_networks import first_networks
from pipeline.images.load import load_images
from pipeline.params import Params
from pipeline.results import results_folder
from pipeline.storage.tables import write_csv, write_json, write_parquet
from pipeline.tracking.mlflow_runs import stage_run
from pipeline.training.conditioning_runs import ConditionSetup, condition_all, scores_table
from pipeline.training.conditioning_tables import (
    ConditioningSummary,
    conditioned_accuracies,
    summarise_conditioning,
)

CONDITIONING_FORMAT = 1  # part of the settings hash: raise it whenever the same inputs would be trained differently


def condition(params: Params) -> None:
    """Train one hypernetwork for several data sets and one for each, and write `results/condition/`.

    Raises:
        UserError: a data set is missing or has too few images, or split test has too few architectures.
    """
    settings = params.condition
    with stage_run("condition", params.model_dump(), experiment=params.tracking.experiment) as run:
        names = (*settings.datasets, *settings.unseen)
        images = {name: load_images(name, params.images, params.storage) for name in names}
        store = ArchitectureStore(params.storage)
        run.log_data("architectures", store.digest)
        for own in images.values():
            run.log_data(own.name, own.settings_hash)
        setup = ConditionSetup.of(
            params,
            store,
            images,
            validated=first_networks(store, "val", min(settings.tuning_architectures, len(store["val"])), params),
            measured=first_networks(store, "test", settings.architectures, params, "condition.architectures"),
        )
        folder = task_cache_folder(params.storage, "conditioning", [CONDITIONING_FORMAT])
        with named_when_interrupted(folder), ray_cluster(params.cluster.address, params.cluster.cpus):
            results = condition_all(setup, folder)
        scores = scores_table(results)
        summary = summarise_conditioning(scores, {name: len(own.classes) for name, own in images.items()})
        folder_of_results = results_folder("condition")
        write_parquet(folder_of_results / "networks.parquet", scores)
        write_csv(folder_of_results / "summary.csv", summary)
        write_json(folder_of_results / "metrics.json", conditioned_accuracies(summary))
        run.log_table(scores, "networks")
        run.log_table(summary, "summary")
        run.summary(conditioned_accuracies(summary))
    clear_task_cache(folder)
    _print_summary(summary)


def _print_summary(summary: DataFrame[ConditioningSummary]) -> None:
    rows = [
        {
            "data set": row.dataset,
            "learned": "yes" if row.is_learned else "no",
            "one for all": percent(row.together_top1, row.together_top1_error),
            "one for it": percent(row.single_top1, row.single_top1_error) if row.is_learned else "",
        }
        for row in summary.itertuples()
    ]
    print_table("Test accuracy in % of networks never seen", rows)
