"""Stage `report`: one HTML page about all results, with the tables and plots that the README shows.

It computes nothing that the other stages and `benchmarks/learning.py` have not measured.
"""

from __future__ import annotations

from pipeline.architectures.store import ArchitectureStore
from pipeline.contracts import write_again
from pipeline.errors import UserError
from pipeline.evaluation.detection_tables import detection_metrics
from pipeline.evaluation.initialisations import HEADLINE
from pipeline.evaluation.networks import evaluated_network
from pipeline.evaluation.summaries import final_accuracies
from pipeline.params import Params
from pipeline.reporting.extremes import ExtremesGallery, extreme_architectures, rank_pictures
from pipeline.reporting.graph_pictures.gallery import render_gallery
from pipeline.reporting.leaderboard import LeaderboardRow, read_leaderboard, shown_row
from pipeline.reporting.numbers import count
from pipeline.reporting.page import provenance, recipe
from pipeline.reporting.read_results import Results, read_results
from pipeline.reporting.results_page import PageParts, ReportSettings, headline, write_report
from pipeline.reporting.seeds_section import seeds_metrics
from pipeline.results import RESULTS, results_folder
from pipeline.tracking.mlflow_runs import StageRun, stage_run
from pipeline.training.adaptation_tables import adapted_accuracies
from pipeline.training.conditioning_tables import conditioned_accuracies


def report(params: Params) -> None:
    """Write `results/report` (index.html, *.png, *.md), and log it and the tables to MLflow.

    Raises:
        UserError: a stage has not written its results, or they or the leaderboard cannot be trusted.
    """
    results, settings = read_results(RESULTS), ReportSettings.of(params)
    gallery = gallery_of(results, params)
    seeds = shown_row(read_leaderboard(), params.dataset)
    parts = PageParts(origin_of(results, settings), recipe(), gallery, seeds)
    with stage_run("report", params.model_dump(), experiment=params.tracking.experiment, last=True) as run:
        folder = results_folder("report")
        page = write_report(results, settings, parts, folder)
        run.log_artifact(folder)
        _log_results(run, results, seeds)
    print(f"{headline(results)}\n{page}")


def gallery_of(results: Results, params: Params) -> ExtremesGallery:
    """Return pictures of the best and of the worst architectures, which are read from the storage.

    Raises:
        UserError: the stored architectures are not those of the results.
    """
    rows = extreme_architectures(results.architectures)
    store, graphs = ArchitectureStore(params.storage), {}
    for row in rows.to_dict("records"):
        split, index = str(row["split"]), int(row["index"])
        network = store.read(split, index)
        if network.network_hash != row["identity"]:
            raise UserError(
                f"architecture {split}/{index} is {network.network_hash}, but {row['identity']} in the results of "
                f"stage evaluate\n{write_again('evaluate')}"
            )
        network = evaluated_network(split, network, params.evaluate, params.images.size)
        graphs[f"{split}/{index}"] = network.graph(params.images.size, results.config.num_classes)
    return rank_pictures(rows, render_gallery(graphs), results.networks)


def origin_of(results: Results, settings: ReportSettings) -> dict[str, str]:
    """Return where the page comes from, by name."""
    return provenance(
        {
            "images": settings.images_in_words,
            "architectures": f"digest {results.stored.digest} of {count(results.stored.files, 'shard')}",
            "checkpoint": f"digest {results.checkpoint[:12]}",
            "seed": str(settings.seed),
            "workers": str(results.training.workers),
        },
        packages=("torch", "torchvision", "numpy", "ray", "mlflow", "dvc"),
    )


def _log_results(run: StageRun, results: Results, seeds: LeaderboardRow | None) -> None:
    """Log the results of all stages, because a stage that DVC skipped has logged nothing to this pipeline's run."""
    run.summary({f"{row['split']}_top1": row[f"{HEADLINE}_top1"] for row in results.accuracy.to_dict("records")})
    run.summary(final_accuracies(results.finetuning))
    run.summary(adapted_accuracies(results.adaptation))
    run.summary(conditioned_accuracies(results.conditioning))
    run.summary(detection_metrics(results.detection))
    if seeds is not None:
        run.summary(seeds_metrics(seeds))
    run.log_table(results.accuracy, "tables/accuracy")
    run.log_table(results.initialisations, "tables/initialisations")
    run.log_table(results.worth, "tables/worth")
    run.log_table(results.study, "tables/study")
    run.log_table(results.properties, "tables/properties")
    run.log_table(results.traits, "tables/traits")
    run.log_table(results.finetuning, "tables/finetuning")
    run.log_table(results.budgets, "tables/finetuning_budgets")
    run.log_table(results.adaptation, "tables/adaptation")
    run.log_table(results.conditioning, "tables/conditioning")
    run.log_table(results.detection, "tables/detection")
