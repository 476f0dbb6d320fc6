"""Statistics of a set of architectures.

Columns are reduced as whole arrays, so that a million rows take seconds. Graphs are built for a sample only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ghn.deepnets1m.genotype import OPERATIONS
from ghn.networks.graph import Graph
from ghn.networks.graph_statistics import average_degree, average_path
from pipeline.architectures.store import ArchitectureStore, Split

QUANTITIES = ("n_cells", "nodes", "edges", "depth", "parameters", "parameters_large", "flops")
"""Columns of the shards that get a minimum, a maximum, a mean, a standard deviation and a median."""

CELLS = ("normal", "reduce")

SAMPLE_SIZE = 100
"""Architectures of each split, the first ones, whose graphs are built."""


@dataclass(frozen=True)
class SetStatistics:
    """Statistics of all splits.

    Attributes:
        splits: a row for each split (`split_statistics`).
        operations: a row for each operation, a column for each split and cell (`operation_shares`).
        sample: a row for each graph (`graph_sample`).
        distinct: the number of different networks in all splits together.
    """

    splits: pd.DataFrame
    operations: pd.DataFrame
    sample: pd.DataFrame
    distinct: int

    @property
    def graphs(self) -> pd.DataFrame:
        """A row for each split: mean and standard deviation (n - 1) of `degree` and of `path` over its sample."""
        return self.sample.groupby("split", sort=False)[["degree", "path"]].agg(["mean", "std"])


def statistics_of(store: ArchitectureStore) -> SetStatistics:
    """Return all statistics of a set of architectures."""
    hashes = [chunk for split in store.manifest["splits"] for chunk in store[split].table("identity")[0].chunks]
    return SetStatistics(
        splits=split_statistics(store),
        operations=operation_shares(store),
        sample=graph_sample(store),
        distinct=pc.count_distinct(pa.chunked_array(hashes, pa.string())).as_py(),
    )


def split_statistics(store: ArchitectureStore) -> pd.DataFrame:
    """Return a row for each split, by its name.

    Columns: rows; bytes; imported, or sampled otherwise; states_min and states_max, of the states of a normal cell; the
    shares norm_free (networks without norm) and attention (networks with msa); and for each quantity `nodes_min`,
    `nodes_max`, `nodes_mean`, `nodes_std`, `nodes_median` and so on. The standard deviation is that of a sample, with
    n - 1, as in the published figures; it is not a number for a single row.
    """
    entries = store.manifest["splits"]
    rows = {split: _statistics(store[split]) | {"bytes": entry["bytes"]} for split, entry in entries.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split")


def _statistics(split: Split) -> dict[str, Any]:
    table = split.table("seed", "norm", "genotype")
    states = pc.divide(pc.list_value_length(pc.struct_field(table["genotype"], "normal")), 2)
    found: dict[str, Any] = {
        "rows": len(split),
        "imported": table["seed"].null_count == len(split),
        "states_min": pc.min(states).as_py(),
        "states_max": pc.max(states).as_py(),
        "norm_free": table["norm"].null_count / len(split),
        "attention": sum(map(_with_attention, table["genotype"].chunks)) / len(split),
    }
    for name, values in split.columns(*QUANTITIES).items():
        found |= {
            f"{name}_min": values.min(),
            f"{name}_max": values.max(),
            f"{name}_mean": values.mean(),
            f"{name}_std": values.std(ddof=1) if len(values) > 1 else np.nan,
            f"{name}_median": np.median(values),
        }
    return found


def _with_attention(genotypes: pa.StructArray) -> int:
    """Return how many of the genotypes use msa in one of their cells."""
    found = np.zeros(len(genotypes), dtype=bool)
    for cell in CELLS:
        edges = pc.struct_field(genotypes, cell)
        is_msa = pc.equal(pc.struct_field(pc.list_flatten(edges), "operation"), "msa")
        found[pc.list_parent_indices(edges).filter(is_msa).to_numpy()] = True
    return int(found.sum())


def operation_shares(store: ArchitectureStore) -> pd.DataFrame:
    """Return the share of each operation (row) among the edges of the cells of each split (columns: split, cell).

    All edges of the records count, also those that do not reach the output of the network.
    """
    shares = {}
    for split in store.manifest["splits"]:
        genotype = store[split].table("genotype")["genotype"]
        for cell in CELLS:
            edges = pc.list_flatten(pc.struct_field(genotype, cell))
            counts = pc.value_counts(pc.struct_field(edges, "operation"))
            shares[split, cell] = {count["values"]: count["counts"] / len(edges) for count in counts.to_pylist()}
    return pd.DataFrame(shares, index=pd.Index(OPERATIONS, name="operation")).fillna(0.0)


def graph_sample(store: ArchitectureStore, size: int = SAMPLE_SIZE) -> pd.DataFrame:
    """Return a row for each of the first `size` architectures of every split: split, index, nodes, degree, path.

    The graphs are those of 32×32 images and 10 classes; `degree` and `path` are `average_degree` and `average_path`.
    """
    rows = []
    for split in store.manifest["splits"]:
        for index in range(min(size, len(store[split]))):
            graph = store[split].read(index).graph(32, 10)
            rows.append((split, index, len(graph.nodes), average_degree(graph), average_path(graph)))
    return pd.DataFrame(rows, columns=["split", "index", "nodes", "degree", "path"])


def small_graphs(store: ArchitectureStore, splits: Sequence[str], small: int, largest: int) -> dict[str, Graph]:
    """Return a small graph of each split, by `<split>/<index>`; none of a split whose smallest graph is too large.

    Args:
        small: nodes; the first graph with at most so many is taken, or the smallest graph if there is none.
        largest: nodes; a split whose smallest graph has more has no graph here.
    """
    found = {}
    for split in splits:
        nodes = store[split].columns("nodes")["nodes"]
        fitting = np.flatnonzero(nodes <= small)
        index = int(fitting[0]) if len(fitting) else int(nodes.argmin())
        if nodes[index] <= largest:
            found[f"{split}/{index}"] = store[split].read(index).graph(32, 10)
    return found
