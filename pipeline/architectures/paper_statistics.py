"""Statistics of the published set of architectures, and how far a stored set is from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.architectures.statistics import SetStatistics


@dataclass(frozen=True)
class PaperStatistics:
    """Published statistics of a split: it has `rows` architectures, and the other figures are of the first `measured`.

    `degree` and `path` are mean and standard deviation over the graphs of `average_degree` and `average_path`.
    """

    rows: int
    measured: int
    nodes_min: int
    nodes_max: int
    nodes_mean: float
    nodes_std: float
    degree: tuple[float, float]
    path: tuple[float, float]


# rows, measured, nodes: min, max, mean, std, degree, path
PAPER_STATISTICS = {
    "train": PaperStatistics(1_000_000, 1000, 35, 681, 192.3, 94.9, (2.3, 0.1), (14.5, 4.8)),
    "val": PaperStatistics(500, 500, 33, 549, 190.5, 94.4, (2.3, 0.1), (14.5, 5.0)),
    "test": PaperStatistics(500, 500, 43, 579, 185.5, 91.2, (2.3, 0.1), (14.3, 4.8)),
    "wide": PaperStatistics(100, 100, 48, 381, 178.6, 75.1, (2.3, 0.1), (14.7, 4.9)),
    "deep": PaperStatistics(100, 100, 74, 1017, 391.2, 176.7, (2.3, 0.1), (26.2, 9.3)),
    "dense": PaperStatistics(100, 100, 57, 993, 355.1, 182.3, (2.4, 0.1), (15.1, 4.1)),
    "bn_free": PaperStatistics(100, 100, 33, 503, 135.1, 78.1, (2.4, 0.1), (10.0, 2.8)),
}
"""Statistics of the files of DeepNets-1M, from examples/graph_properties.ipynb of github.com/facebookresearch/ppuda."""

REFERENCE_STATISTICS = PaperStatistics(24, 24, 42, 397, 186.9, 82.3, (2.3, 0.1), (13.4, 3.9))
"""Statistics of tests/golden/deepnets_ghn2.json: architectures that the published code sampled, with its graphs."""

REFERENCE_PARAMETERS = {"parameters_min": 82_986, "parameters_median": 313_858, "parameters_max": 4_545_114}
"""Numbers of parameters of the same, at the width of all splits but wide: C = 32, fc_dim = 256."""


def differences(statistics: SetStatistics) -> pd.DataFrame:
    """Return by how much the means over the graphs of each split differ from the published ones.

    There is a row for each split and quantity: `nodes`, of all architectures, and `path`, of the sample. Columns:
    difference; error, the standard error of both means together, which is not a number for a split of one row.
    """
    graphs, sampled = statistics.graphs, statistics.sample["split"].value_counts()
    rows = {}
    for split, row in statistics.splits.iterrows():
        published = PAPER_STATISTICS[split]
        nodes, published_nodes = (row["nodes_mean"], row["nodes_std"]), (published.nodes_mean, published.nodes_std)
        rows[split, "nodes"] = _apart(nodes, row["rows"], published_nodes, published.measured)
        rows[split, "path"] = _apart(graphs.loc[split, "path"], sampled[split], published.path, published.measured)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["split", "quantity"])


def _apart(ours: Iterable[float], count: int, theirs: Iterable[float], their_count: int) -> dict[str, float]:
    (mean, std), (their_mean, their_std) = ours, theirs
    return {"difference": mean - their_mean, "error": np.hypot(std / np.sqrt(count), their_std / np.sqrt(their_count))}
