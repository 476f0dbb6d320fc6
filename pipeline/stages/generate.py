"""Stage `generate`: architectures of all splits, as sharded Parquet in the storage, and the manifest that names them.

Splits are sampled, except those that `generate.imported` names: the manifest takes their shards as they are.
"""

from __future__ import annotations

import humanize

from pipeline.architectures.splits import store_architectures
from pipeline.architectures.store import ArchitectureStore
from pipeline.console import print_table
from pipeline.params import Params
from pipeline.results import MANIFEST
from pipeline.tracking.mlflow_runs import stage_run


def generate(params: Params) -> None:
    """Write the shards that are missing, then the manifest.

    Raises:
        UserError: an imported split is missing or damaged, or the storage cannot be written.
    """
    with stage_run("generate", params.model_dump(), experiment=params.tracking.experiment) as run:
        store = store_architectures(params)
        run.log_artifact(MANIFEST)
        run.log_data("architectures", store.digest)
        run.log_metrics({f"architectures_{name}": len(split) for name, split in store.splits.items()})
    _print_summary(store)


def _print_summary(store: ArchitectureStore) -> None:
    entries = store.manifest["splits"].items()
    print_table(
        "Architectures",
        [
            {
                "split": split,
                "architectures": f"{entry['rows']:,}",
                "files": f"{len(entry['shards']):,}",
                "size": humanize.naturalsize(entry["bytes"]),
            }
            for split, entry in entries
        ],
    )
