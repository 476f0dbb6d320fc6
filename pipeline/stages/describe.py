"""Stage `describe`: the page about the stored architectures, in `results/generate/report`.

A stage of its own, because a change of a template or a colour changes this page and no architecture.
"""

from __future__ import annotations

from pipeline.architectures.statistics import small_graphs, statistics_of
from pipeline.architectures.store import ArchitectureStore
from pipeline.params import Params
from pipeline.reporting.architecture_report import write_architecture_report
from pipeline.reporting.graph_pictures.gallery import GALLERY_SPLITS, SMALL_GRAPH, render_gallery
from pipeline.reporting.page import LARGEST_GRAPH, provenance
from pipeline.results import results_folder
from pipeline.tracking.mlflow_runs import stage_run


def describe(params: Params) -> None:
    """Write the page, its plots and the README's table of statistics; log them to MLflow.

    Raises:
        UserError: stage generate has written no manifest, or a shard is missing or damaged.
    """
    store = ArchitectureStore(params.storage)
    with stage_run("describe", params.model_dump(), experiment=params.tracking.experiment) as run:
        statistics = statistics_of(store)
        folder = results_folder("generate") / "report"
        gallery = render_gallery(small_graphs(store, GALLERY_SPLITS, SMALL_GRAPH, LARGEST_GRAPH))
        page = write_architecture_report(store, statistics, gallery, origin_of(params, store), folder)
        run.log_artifact(folder)
        run.log_data("architectures", store.digest)
        run.log_table(statistics.splits.reset_index(), "tables/architectures")
    print(page)


def origin_of(params: Params, store: ArchitectureStore) -> dict[str, str]:
    """Return where the page comes from, by name."""
    imported = ", ".join(f"{split} from {address}" for split, address in params.generate.imported.items())
    return provenance(
        {"seed": str(params.seed), "imported": imported or "none", "architectures": f"digest {store.digest}"},
        packages=("pyarrow", "ray", "mlflow", "dvc"),
    )
