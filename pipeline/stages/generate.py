"""Stage `generate`: architectures of all splits, as sharded Parquet in the storage; in results/ a manifest and a page.

Splits are drawn, but for those that `generate.imported` names: of these the manifest takes the shards as they are.
"""

from __future__ import annotations

from pipeline.architectures.splits import store_architectures
from pipeline.architectures.statistics import statistics_of
from pipeline.architectures.store import ArchitectureStore
from pipeline.console import print_table
from pipeline.params import Params
from pipeline.reporting.architecture_report import write_architecture_report
from pipeline.reporting.page import file_size
from pipeline.results import MANIFEST, results_folder
from pipeline.stages.describe import provenance
from pipeline.tracking.mlflow_runs import stage_run


def generate(params: Params) -> None:
    """Writes the shards that are missing, then the manifest and the page about them."""
    with stage_run("generate", params.model_dump(), experiment=params.tracking.experiment) as run:
        store = store_architectures(params)
        statistics = statistics_of(store)
        folder = results_folder("generate") / "report"
        page = write_architecture_report(store, statistics, provenance(params, store), folder)
        run.log_artifact(MANIFEST)
        run.log_artifact(folder)
        run.log_data("architectures", store.digest)
        run.log_table(statistics.splits.reset_index(), "tables/architectures")
        run.log_metrics({f"architectures_{split}": len(files) for split, files in store.splits.items()})
    _print_summary(store)
    print(page)


def _print_summary(store: ArchitectureStore) -> None:
    entries = store.manifest["splits"].items()
    print_table(
        "Architectures",
        [
            {
                "split": split,
                "architectures": f"{entry['rows']:,}",
                "files": f"{len(entry['shards']):,}",
                "size": file_size(entry["bytes"]),
            }
            for split, entry in entries
        ],
    )
