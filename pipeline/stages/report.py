"""Stage `report`: one HTML page, and the tables and plots that the README shows.

Computes nothing that the other stages have not measured.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from pipeline.architectures.store import content_digest_of
from pipeline.params import Params
from pipeline.reporting.page import count, git_state, versions
from pipeline.reporting.read_results import Results, read_results
from pipeline.reporting.results_page import _images, headline, write_report
from pipeline.results import RESULTS, results_folder
from pipeline.tracking.mlflow_runs import stage_run


def report(params: Params) -> None:
    """Writes `results/report`: index.html, *.png, *.md; logs them, and the tables, to MLflow.

    Raises UserError if a stage has not written its results, or they cannot be trusted.
    """
    results = read_results(RESULTS)
    with stage_run("report", params.model_dump(), experiment=params.tracking.experiment, last=True) as run:
        folder = results_folder("report")
        page = write_report(results, params, provenance(results, params), folder)
        run.log_artifact(folder)
        # Stages that had nothing to do logged nothing to this pipeline's run: it shows their results all the same.
        run.summary({f"{row.split}_top1": row.predicted_top1 for row in results.accuracy.itertuples()})
        run.summary({f"{r.dataset}_{r.initialisation}_top1": r.test_top1 for r in results.finetuning.itertuples()})
        run.log_table(results.accuracy, "tables/accuracy")
        run.log_table(results.finetuning, "tables/finetuning")
    print(f"{headline(results)}\n{page}")


def provenance(results: Results, params: Params) -> dict[str, str]:
    """Where the page comes from: code, data, versions, date."""
    shards = sum(len(split["shards"]) for split in results.manifest["splits"].values())
    return {
        "code": git_state(),
        "DVC experiment": os.environ.get("DVC_EXP_NAME") or "none",
        "images": _images(params),
        "architectures": f"digest {content_digest_of(results.manifest)} of {count(shards, 'shard')}",
        "checkpoint": f"digest {results.checkpoint[:12]}",
        "seed": str(params.seed),
        "workers": str(params.train.workers),
        "versions": versions("torch", "ray", "mlflow", "dvc"),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
