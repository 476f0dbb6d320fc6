"""The page about the set of architectures, and the table of their statistics that the README shows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import humanize
import pandas as pd
import pyarrow as pa

from pipeline.architectures.paper_statistics import (
    PAPER_STATISTICS,
    REFERENCE_PARAMETERS,
    REFERENCE_STATISTICS,
    PaperStatistics,
    differences,
)
from pipeline.architectures.shards import SCHEMA
from pipeline.architectures.statistics import CELLS, SAMPLE_SIZE, SetStatistics
from pipeline.architectures.store import ArchitectureStore
from pipeline.reporting import architecture_plots
from pipeline.reporting.numbers import EN_DASH, count, difference, mean_and_std, number_range, short_count
from pipeline.reporting.page import GraphGallery, HeadlineNumber, Plot, Table, render_page, write_figures
from pipeline.storage.files import write_bytes

SPLITS_WITH_PATHS = ("train", "test", "deep", "dense", "bn_free")
"""Splits whose paths are shown. Those of val are like those of test, and the graphs of wide are those of test."""

COLUMN_ENDINGS = {"smallest": "min", "median": "median", "largest": "max"}
"""The end of a column's name for each size that the tables show."""


def write_architecture_report(
    store: ArchitectureStore,
    statistics: SetStatistics,
    gallery: GraphGallery,
    origin: Mapping[str, str],
    folder: Path,
) -> Path:
    """Write index.html, *.png and statistics.md to `folder`, and return the path of the page.

    Args:
        store: the architectures.
        statistics: those of the store.
        gallery: small graphs of some splits.
        origin: where the page comes from, by name.
        folder: the files go there.
    """
    write_bytes(folder / "statistics.md", readme_table(statistics).markdown().encode())
    page = render_page(
        "architecture_report.html.jinja",
        headline=headline(statistics),
        numbers=headline_numbers(statistics),
        figures=write_figures(report_plots(store, statistics), folder),
        statistics=statistics_table(statistics),
        operations=operations_table(statistics),
        published=published_table(statistics),
        agreement=agreement(statistics),
        sampled=not statistics.splits["imported"].all(),
        fields=fields_table(),
        files=count(sum(len(entry["shards"]) for entry in store.manifest["splits"].values()), "file"),
        sample=SAMPLE_SIZE,
        reference={name: short_count(value) for name, value in REFERENCE_PARAMETERS.items()},
        gallery=gallery,
        origin=origin.items(),
    )
    write_bytes(folder / "index.html", page.encode())
    return folder / "index.html"


# What the page says


def headline(statistics: SetStatistics) -> str:
    """Return what the set is, in two sentences."""
    splits = statistics.splits
    rows = int(splits["rows"].sum())
    nodes = f"{splits['nodes_min'].min():,} to {splits['nodes_max'].max():,} nodes"
    sizes = f"{short_count(splits['parameters_min'].min())} to {short_count(splits['parameters_max'].max())} parameters"
    alike = "No two are the same." if statistics.distinct == rows else f"{statistics.distinct:,} are different ones."
    return (
        f"{count(rows, 'network')} in {count(len(splits), 'split')}, to train hypernetworks on and to test them with: "
        f"from {nodes}, from {sizes}. {alike}"
    )


def headline_numbers(statistics: SetStatistics) -> list[HeadlineNumber]:
    """Return the numbers on top of the page."""
    splits, operations = statistics.splits, statistics.operations
    rows, distinct = int(splits["rows"].sum()), statistics.distinct
    repeats = "no two alike" if distinct == rows else f"{rows - distinct:,} repeat another"
    training = f"{splits.loc['train', 'rows']:,} to train on"
    used = int((operations > 0).any(axis=1).sum())
    size, unit = humanize.naturalsize(splits["bytes"].sum()).split()
    return [
        HeadlineNumber(f"{rows:,}", "", "architectures", training, is_accent=True),
        HeadlineNumber(f"{distinct:,}", "", "distinct", repeats),
        HeadlineNumber(f"{used}", "", "operations", f"of {len(operations)} possible"),
        HeadlineNumber(size, unit, "on disk", "as Parquet"),
    ]


def report_plots(store: ArchitectureStore, statistics: SetStatistics) -> dict[str, Plot]:
    """Return the plots by the names of their files, without suffix."""
    columns = {split: store[split].columns("nodes", "parameters") for split in statistics.splits.index}
    sample = statistics.sample
    return {
        "distributions": Plot(
            "How many nodes and parameters the architectures of each split have (32×32 images, 10 classes; logarithmic "
            "axes). The line below a distribution reaches from the smallest to the largest, the number is the median.",
            partial(architecture_plots.distributions_by_split, columns),
        ),
        "paths": Plot(
            f"Average path against size, a point a graph, the first {SAMPLE_SIZE} of each split: deep networks have "
            "longer paths than those of train, dense ones more nodes at paths of the same length.",
            partial(architecture_plots.paths_by_size, sample[sample["split"].isin(SPLITS_WITH_PATHS)]),
        ),
        "operations": Plot(
            "What the edges of cells do, in split train. One reduction cell in two is sampled from the first "
            "four operations alone; cells with one state never have none; a cell has at most one cse and one of "
            "conv_5x5 and conv_7x7.",
            partial(architecture_plots.operations_by_cell, statistics.operations["train"]),
        ),
    }


def statistics_table(statistics: SetStatistics) -> Table:
    """Return a column for each split and a row for each figure."""
    splits = statistics.splits
    figures = {split: _figures(row, statistics.graphs.loc[split]) for split, row in splits.iterrows()}
    names = next(iter(figures.values()))
    return Table(("", *splits.index), [(name, *(of_split[name] for of_split in figures.values())) for name in names])


def _figures(row: pd.Series, graphs: pd.Series) -> dict[str, str]:
    return {
        "architectures": f"{row['rows']:,.0f}",
        "size on disk": humanize.naturalsize(row["bytes"]),
        "cells": _range(row, "n_cells"),
        "states a cell": _range(row, "states"),
        "nodes": _range(row, "nodes"),
        "nodes, mean ± std": mean_and_std(row["nodes_mean"], row["nodes_std"], 0),
        "edges, mean ± std": mean_and_std(row["edges_mean"], row["edges_std"], 0),
        "depth, mean ± std": mean_and_std(row["depth_mean"], row["depth_std"], 0),
        "average degree": f"{graphs['degree', 'mean']:.2f}",
        "average path": mean_and_std(*graphs["path"]),
        **{f"parameters, {name}": short_count(row[f"parameters_{key}"]) for name, key in COLUMN_ENDINGS.items()},
        **{f"at 224×224, {name}": short_count(row[f"parameters_large_{key}"]) for name, key in COLUMN_ENDINGS.items()},
        **{f"FLOPs, {name}": short_count(row[f"flops_{key}"]) for name, key in COLUMN_ENDINGS.items()},
        "without norm, %": f"{100 * row['norm_free']:.1f}",
        "with attention, %": f"{100 * row['attention']:.1f}",
    }


def readme_table(statistics: SetStatistics) -> Table:
    """Return a row for each split."""
    columns = (
        *("split", "architectures", "nodes", "mean ± std", "published", "depth, mean ± std"),
        *("parameters, median", "smallest to largest", "at 224×224, median"),
    )
    rows = []
    for split, row in statistics.splits.iterrows():
        published = PAPER_STATISTICS[split]
        size = f"{short_count(row['parameters_min'])} {EN_DASH} {short_count(row['parameters_max'])}"
        rows.append(
            (
                split,
                f"{row['rows']:,.0f}",
                _range(row, "nodes"),
                mean_and_std(row["nodes_mean"], row["nodes_std"]),
                f"{_published_range(published)}, {mean_and_std(published.nodes_mean, published.nodes_std)}",
                mean_and_std(row["depth_mean"], row["depth_std"]),
                short_count(row["parameters_median"]),
                size,
                short_count(row["parameters_large_median"]),
            )
        )
    return Table(columns, rows)


def operations_table(statistics: SetStatistics) -> Table:
    """Return a row for each operation, a column for each split: % of the edges of normal / of reduction cells."""
    shares = statistics.operations
    rows = [
        (
            operation,
            *(" / ".join(f"{100 * row[split, cell]:.1f}" for cell in CELLS) for split in statistics.splits.index),
        )
        for operation, row in shares.iterrows()
    ]
    return Table(("operation", *statistics.splits.index), rows)


def published_table(statistics: SetStatistics) -> Table:
    """Return the figures of each split above the published ones, and at the end those of the reference."""
    columns = ("", "networks", "nodes", "mean ± std", "difference", "degree", "path", "parameters, median")
    graphs, apart = statistics.graphs, differences(statistics)
    rows: list[tuple[str, ...]] = []
    for split, row in statistics.splits.iterrows():
        rows.append(
            (
                split,
                f"{row['rows']:,.0f}",
                _range(row, "nodes"),
                mean_and_std(row["nodes_mean"], row["nodes_std"]),
                difference(*apart.loc[(split, "nodes")]),
                mean_and_std(*graphs.loc[split, "degree"]),
                mean_and_std(*graphs.loc[split, "path"]),
                short_count(row["parameters_median"]),
            )
        )
        rows.append(("published", *_published_cells(PAPER_STATISTICS[split]), ""))
    parameters = short_count(REFERENCE_PARAMETERS["parameters_median"])
    rows.append(("reference", *_published_cells(REFERENCE_STATISTICS), parameters))
    return Table(columns, rows)


def _published_cells(published: PaperStatistics) -> tuple[str, ...]:
    nodes = mean_and_std(published.nodes_mean, published.nodes_std)
    graphs = (mean_and_std(*published.degree), mean_and_std(*published.path))
    return f"{published.rows:,}", _published_range(published), nodes, "", *graphs


def _published_range(published: PaperStatistics) -> str:
    return f"{published.nodes_min:,}{EN_DASH}{published.nodes_max:,}"


def agreement(statistics: SetStatistics) -> str:
    """Return how many means differ from the published ones by chance alone, and how far the others are."""
    known = differences(statistics).dropna()
    if known.empty:
        return "Splits of one network have means without a standard error: nothing to compare with the published ones."
    far = known[known["difference"].abs() > 2 * known["error"]]
    within = len(known) - len(far)
    text = f"{within} of {len(known)} means of nodes and paths are within two standard errors of the published ones."
    words = []
    for (split, quantity), row in far.iterrows():
        more, fewer = ("more nodes", "fewer nodes") if quantity == "nodes" else ("edges longer", "edges shorter")
        apart = f"{abs(row['difference']):.1f} {more if row['difference'] > 0 else fewer}"
        subject = split if quantity == "nodes" else f"paths of {split}"
        words.append(f"{subject}, {apart} ({abs(row['difference'] / row['error']):.1f} standard errors)")
    return f"{text} Further apart: {'; '.join(words)}." if words else text


def fields_table() -> Table:
    """Return the columns of the files."""
    rows = [
        (field.name, "struct" if pa.types.is_struct(field.type) else str(field.type), field.metadata[b"is"].decode())
        for field in SCHEMA
    ]
    return Table(("column", "type", "what it is"), rows, words=3)


def _range(row: pd.Series, name: str) -> str:
    return number_range(row[f"{name}_min"], row[f"{name}_max"])
