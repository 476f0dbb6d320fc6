"""Private interfaces of MLflow, checked with MLflow 3.17."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SHARED_VIEW = "mlflow.sharedViewState."
"""What the tags of an experiment begin with in which the MLflow page keeps shared views; a view's name follows."""

RUN_LIST_VIEW = f"{SHARED_VIEW}ghn"
"""Tag of the view of the run list that was shared as `ghn`."""

EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment whose page opens as one for training, not as one for language models."""

LOGGED_TABLES = "mlflow.loggedArtifacts"
"""Tag of a run that lists the tables which the MLflow page shows and compares, as JSON."""

NOISY_LOGGERS = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool", "mlflow.utils.rest_utils")
"""Loggers that report each migration, each retry and each database error; the pipeline reports what matters itself."""


def study_view(search: str, params: Sequence[str], metrics: Sequence[str], curves: Sequence[str]) -> dict[str, Any]:
    """Return a shared view of runs: a parallel-coordinates chart, a bar chart a metric and a line chart a curve.

    Args:
        search: the filter of the runs. The first chart leaves out runs that lack a parameter or a metric.
        params: names of parameters of the runs: the first axes.
        metrics: names of metrics of the runs: the other axes. The last one colours the lines and sorts the list.
        curves: names of metrics with a value for each step.
    """
    line = {"xAxisKey": "step", "scaleType": "linear", "xAxisScaleType": "linear", "lineSmoothness": 0, "range": {}}
    line |= {"yAxisKey": "metric", "yAxisExpressions": [], "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    axes = {"selectedParams": list(params), "selectedMetrics": list(metrics), "showAllRuns": True}
    columns = [*(f"params.`{name}`" for name in params), *(f"metrics.`{name}`" for name in metrics)]
    return {
        "searchFilter": search,
        "orderByKey": f"metrics.`{metrics[-1]}`",  # in the order of their start, runs hide below their parent
        "orderByAsc": False,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [
            _chart("PARALLEL", "Study", "Study", **axes),
            *(_chart("BAR", name, "Splits", metricKey=name) for name in metrics),
            *(_chart("LINE", name, "Curves", metricKey=name, selectedMetricKeys=[name], **line) for name in curves),
        ],
        "compareRunSections": [_section("Study", 1), _section("Splits", 3), _section("Curves", 2)],
    }


def _chart(kind: str, name: str, section: str, **fields: Any) -> dict[str, Any]:
    own = {"type": kind, "uuid": f"{kind}-{name}", "displayName": name, "metricSectionId": section}
    return own | {"runsCountToCompare": 100, "isGenerated": False, "deleted": False} | fields


def _section(name: str, columns: int) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": True, "isReordered": False, "isGenerated": False, "columns": columns}


def user_and_program() -> dict[str, str]:
    """Return the tags that MLflow gives a run of its fluent interface: user, program, git commit."""
    from mlflow.tracking.context.registry import resolve_tags

    return resolve_tags()
