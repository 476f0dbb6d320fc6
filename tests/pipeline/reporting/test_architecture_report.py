from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from browser import CHROMIUM, look_at
from PIL import Image
from scipy.stats import ks_2samp
from small_settings import ROOT

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import OPERATIONS
from ghn.deepnets1m.sampling import sample_architecture
from ghn.networks.graph import Graph, Node
from ghn.networks.graph_statistics import average_degree, average_path
from pipeline.architectures.paper_statistics import (
    PAPER_STATISTICS,
    REFERENCE_PARAMETERS,
    REFERENCE_STATISTICS,
    differences,
)
from pipeline.architectures.shards import SCHEMA, row, table_of, write_shard
from pipeline.architectures.statistics import (
    QUANTITIES,
    SetStatistics,
    graph_sample,
    operation_shares,
    small_graphs,
    split_statistics,
    statistics_of,
)
from pipeline.architectures.store import ArchitectureStore, write_manifest
from pipeline.params import SPLITS
from pipeline.reporting.architecture_report import (
    agreement,
    headline,
    headline_numbers,
    operations_table,
    published_table,
    readme_table,
    statistics_table,
    write_architecture_report,
)
from pipeline.reporting.graph_pictures.gallery import GALLERY_SPLITS, SMALL_GRAPH, render_gallery
from pipeline.reporting.page import LARGEST_GRAPH, GraphGallery

COUNTS = {"train": 30, "val": 2, "test": 5, "wide": 5, "deep": 3, "dense": 4, "bn_free": 1}
GOLDEN = json.loads((ROOT / "tests/golden/deepnets_ghn2.json").read_text())


def sampled_table(split: str, count: int) -> pa.Table:
    """Return the rows of the first architectures of a split."""
    source = "test" if split == "wide" else split
    architectures = [sample_architecture(0, source, index) for index in range(count)]
    if split == "wide":
        architectures = [architecture.widened(32) for architecture in architectures]
    return table_of([row(index, a, seed=0, attempt=0) for index, a in enumerate(architectures)])


def make_store(folder: Path, tables: Mapping[str, pa.Table], rows: int = 10) -> ArchitectureStore:
    """Return a storage with splits in shards of so many rows."""
    splits = {}
    for split, table in tables.items():
        places = {
            f"{folder}/{split}/{first}.parquet": table[first : first + rows] for first in range(0, len(table), rows)
        }
        splits[split] = (split, [write_shard(place, part) for place, part in places.items()])
    write_manifest(folder / "manifest.json", splits)
    return ArchitectureStore(str(folder), folder / "manifest.json")


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return {split: sampled_table(split, COUNTS[split]) for split in SPLITS}


@pytest.fixture(scope="module")
def store(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> ArchitectureStore:
    """Return a storage with all splits, split bn_free with one row."""
    return make_store(tmp_path_factory.mktemp("storage"), tables)


@pytest.fixture(scope="module")
def statistics(store: ArchitectureStore) -> SetStatistics:
    return statistics_of(store)


def gallery_of(store: ArchitectureStore) -> GraphGallery:
    return render_gallery(small_graphs(store, GALLERY_SPLITS, SMALL_GRAPH, LARGEST_GRAPH))


@pytest.fixture(scope="module")
def page(store: ArchitectureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    gallery, origin = (
        gallery_of(store),
        {"code": "<i>unknown</i>"},
    )
    return write_architecture_report(store, statistics_of(store), gallery, origin, tmp_path_factory.mktemp("report"))


def files_of(store: ArchitectureStore, split: str) -> list[Path]:
    return sorted(Path(store[split].folder).iterdir(), key=lambda file: int(file.stem))


# Statistics


@pytest.mark.parametrize("split", ["train", "dense", "bn_free"])
def test_statistics_are_those_that_pandas_computes_from_the_files(store: ArchitectureStore, split: str) -> None:
    rows = pd.concat([pd.read_parquet(file) for file in files_of(store, split)])
    found = split_statistics(store).loc[split]
    for name in QUANTITIES:
        expected = rows[name].agg(["min", "max", "mean", "std", "median"])
        np.testing.assert_allclose([found[f"{name}_{key}"] for key in expected.index], expected.astype(float))
    states = [len(genotype["normal"]) // 2 for genotype in rows["genotype"]]
    attention = [architecture.has_msa for architecture in store.networks(split)]
    assert (found["states_min"], found["states_max"]) == (min(states), max(states))
    assert found["norm_free"] == rows["norm"].isna().mean()
    assert found["attention"] == np.mean(attention)
    assert found["rows"] == len(rows)
    assert found["bytes"] == sum(file.stat().st_size for file in files_of(store, split))


def test_operations_are_counted_on_all_edges_of_both_cells(store: ArchitectureStore) -> None:
    shares = operation_shares(store)
    assert list(shares.index) == list(OPERATIONS)
    for cell in ("normal", "reduce"):
        edges = [edge for architecture in store.networks("train") for edge in getattr(architecture.genotype, cell)]
        counts = Counter(operation for operation, _ in edges)
        assert shares["train", cell].to_dict() == {name: counts[name] / len(edges) for name in OPERATIONS}


def test_networks_that_repeat_another_one_are_counted_not_hidden(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    again = tables | {"test": tables["val"]}
    statistics = statistics_of(make_store(tmp_path, again))
    rows = sum(map(len, again.values()))
    assert statistics.distinct == rows - 2
    assert f"{rows - 2} are different ones" in headline(statistics)
    assert "2 repeat another" in str(headline_numbers(statistics))


def test_imported_splits_are_told_from_sampled_ones(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    seed = SCHEMA.get_field_index("seed")
    imported = tables["test"].set_column(seed, SCHEMA.field(seed), pa.nulls(len(tables["test"]), pa.int64()))
    found = split_statistics(make_store(tmp_path, tables | {"test": imported}))["imported"]
    assert found[found].index.tolist() == ["test"]


def test_the_sample_is_the_first_architectures_of_each_split(store: ArchitectureStore) -> None:
    sample = graph_sample(store, 3)
    assert sample["split"].value_counts().to_dict() == {split: min(count, 3) for split, count in COUNTS.items()}
    for split, of_split in sample.groupby("split"):
        assert of_split["nodes"].tolist() == store[split].columns("nodes")["nodes"][:3].tolist()


# Beside the published set


def test_the_reference_figures_are_those_of_the_golden_files() -> None:
    graphs = [Graph(tuple(map(Node, case["nodes"])), tuple(map(tuple, case["edges"]))) for case in GOLDEN]
    nodes = pd.Series([len(graph.nodes) for graph in graphs])
    assert (len(nodes), nodes.min(), nodes.max()) == (
        REFERENCE_STATISTICS.rows,
        REFERENCE_STATISTICS.nodes_min,
        REFERENCE_STATISTICS.nodes_max,
    )
    assert (round(nodes.mean(), 1), round(nodes.std(), 1)) == (
        REFERENCE_STATISTICS.nodes_mean,
        REFERENCE_STATISTICS.nodes_std,
    )
    for measure, expected in ((average_degree, REFERENCE_STATISTICS.degree), (average_path, REFERENCE_STATISTICS.path)):
        values = pd.Series([measure(graph) for graph in graphs])
        assert (round(values.mean(), 1), round(values.std(), 1)) == expected
    parameters = pd.Series(golden_parameters())
    for key, expected in REFERENCE_PARAMETERS.items():
        assert parameters.agg(key.removeprefix("parameters_")) == expected


def test_the_architectures_of_split_train_are_distributed_as_the_golden_ones() -> None:
    # The published code sampled these for training. Their graphs do not depend on the width that they were given.
    ours = sampled_table("train", 300).select(["nodes", "parameters"]).to_pandas()
    for values, golden in (
        (ours["nodes"], [len(case["nodes"]) for case in GOLDEN]),
        (ours["parameters"], golden_parameters()),
    ):
        assert values.min() <= min(golden) <= max(golden) <= values.max()
        assert ks_2samp(values, golden).pvalue > 0.01


def golden_parameters() -> list[int]:
    """Return the numbers of parameters at the width of split train."""
    architectures = [Architecture.from_dict(case["arch"]) for case in GOLDEN]
    return [architecture.with_width(32, 256).num_parameters(32, 10) for architecture in architectures]


def test_differences_come_with_the_standard_error_of_both_means(statistics: SetStatistics) -> None:
    found = differences(statistics).loc[("train", "nodes")]
    row, published = statistics.splits.loc["train"], PAPER_STATISTICS["train"]
    assert found["difference"] == pytest.approx(row["nodes_mean"] - 192.3)
    assert found["error"] == pytest.approx((row["nodes_std"] ** 2 / 30 + published.nodes_std**2 / 1000) ** 0.5)
    assert np.isnan(differences(statistics).loc[("bn_free", "path"), "error"])


def test_what_differs_by_more_than_chance_is_said(statistics: SetStatistics) -> None:
    splits = statistics.splits.copy()
    for split, published in PAPER_STATISTICS.items():
        splits.loc[split, ["nodes_mean", "nodes_std"]] = published.nodes_mean, published.nodes_std
    splits.loc["deep", "nodes_mean"] -= 900
    text = agreement(SetStatistics(splits, statistics.operations, statistics.sample, statistics.distinct))
    assert "deep, 900.0 fewer nodes (" in text
    assert not re.search("(train|val|test), ", text)


# Tables and page


def test_the_tables_show_the_statistics(statistics: SetStatistics, store: ArchitectureStore) -> None:
    rows = pd.concat([pd.read_parquet(file) for file in files_of(store, "dense")])
    table = statistics_table(statistics)
    cells = {cell[0]: cell[table.columns.index("dense")] for cell in table.rows}
    nodes = rows["nodes"]
    assert cells["architectures"] == "4"
    assert cells["nodes"] == f"{nodes.min()}\N{EN DASH}{nodes.max()}"
    assert cells["nodes, mean ± std"] == f"{nodes.mean():.0f} ± {nodes.std():.0f}"
    assert cells["without norm, %"] == f"{100 * rows['norm'].isna().mean():.1f}"
    assert float(cells["parameters, median"].split()[0]) == pytest.approx(
        rows["parameters"].median() / (1e6 if "M" in cells["parameters, median"] else 1e3), rel=0.01
    )
    edges = [edge["operation"] for genotype in rows["genotype"] for edge in genotype["reduce"]]
    (pools,) = [row for row in operations_table(statistics).rows if row[0] == "max_pool_3x3"]
    assert pools[1 + SPLITS.index("dense")].split(" / ")[1] == f"{100 * edges.count('max_pool_3x3') / len(edges):.1f}"


def test_the_table_of_the_readme_has_a_row_a_split_beside_the_published_figures(statistics: SetStatistics) -> None:
    rows = {row[0]: row for row in readme_table(statistics).rows}
    assert list(rows) == list(SPLITS)
    assert rows["deep"][4] == "74\N{EN DASH}1,017, 391.2 ± 176.7"
    assert readme_table(statistics).markdown().count("\n") == 2 + len(SPLITS)


def test_each_split_is_above_its_published_figures(statistics: SetStatistics) -> None:
    table = published_table(statistics)
    assert [row[0] for row in table.rows[:-1:2]] == list(SPLITS)
    assert {row[0] for row in table.rows[1:-1:2]} == {"published"}
    assert table.rows[1][1:4] == ("1,000,000", "35\N{EN DASH}681", "192.3 ± 94.9")
    assert table.rows[-1][0] == "reference"


def test_the_report_has_the_page_the_plots_and_the_table_of_the_readme(page: Path) -> None:
    figures = {f"{name}.png" for name in ("distributions", "paths", "operations")}
    assert {file.name for file in page.parent.iterdir()} == {"index.html", "statistics.md", *figures}
    with Image.open(page.parent / "distributions.png") as image:
        assert image.width == 1440


def test_the_page_is_light_and_needs_nothing_from_elsewhere(page: Path) -> None:
    html = page.read_text()
    assert len(html.encode()) < 1_500_000
    addresses = re.findall(r'(?:\b(?:src|href|action)=|url\(|@import)\s*["\']?([^"\')\s>]+)', html)
    assert {address for address in addresses if not address.startswith(("#", "data:"))} == set()
    assert "<script" not in html
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_the_page_names_every_column_and_escapes_its_origin(page: Path) -> None:
    html = page.read_text()
    assert all(f"<td>{name}</td>" in html for name in SCHEMA.names)
    assert "&lt;i&gt;unknown&lt;/i&gt;" in html


def test_splits_of_one_row_have_a_page_without_spreads(
    tables: dict[str, pa.Table], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    store = make_store(tmp_path / "storage", {split: table[:1] for split, table in tables.items()})
    page = write_architecture_report(
        store,
        statistics_of(store),
        gallery_of(store),
        {},
        tmp_path,
    )
    text = re.sub(r"<svg.*?</svg>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
    assert not re.search(r"\bnan\b", text + (tmp_path / "statistics.md").read_text())
    assert "without a standard error" in text
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_a_hundred_thousand_rows_take_seconds(tables: dict[str, pa.Table], tmp_path: Path) -> None:
    count = 100_000
    rows = np.arange(count)
    many = tables["train"].take(rows % COUNTS["train"])
    many = many.set_column(0, SCHEMA.field("index"), pa.array(rows))
    many = many.set_column(1, SCHEMA.field("identity"), pa.array([f"{number:024x}" for number in rows]))
    store = make_store(tmp_path, tables | {"train": many}, rows=10_000)
    start = time.perf_counter()
    statistics = statistics_of(store)
    assert time.perf_counter() - start < 20  # a loop over the rows would take minutes
    assert statistics.splits.loc["train", "rows"] == count
    assert statistics.splits.loc["train", "nodes_median"] == np.median(many["nodes"])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_shows_the_page_within_its_width(page: Path, width: int, tmp_path: Path) -> None:
    probe = """
      document.querySelectorAll("details").forEach(details => details.open = true);
      const shown = selector => [...document.querySelectorAll(selector)].map(svg => svg.getBoundingClientRect())
        .filter(box => box.width > 100);
      return {
        plots: shown("figure:not(.graph) svg").length,
        graphs: shown(".graph svg").length,
        smallest: Math.min(...shown(".graph svg").map(box => box.width)),
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      };
    """
    look = look_at(page, width, tmp_path, probe)
    assert (look.width, look.overflow) == (width, 0)
    assert look.seen.pop("smallest") > 300  # so that its text can be read
    assert look.seen.pop("graphs") >= 1
    assert look.seen == {"plots": 3, "overflow": 0}  # with all that can be unfolded
    assert f"{sum(COUNTS.values())} networks in 7 splits" in look.text
