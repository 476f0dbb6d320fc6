"""Stage `copies`, after stage sgd: an architecture that is a source itself has its own accuracy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from evaluation_examples import ARCHITECTURES, architecture, make_ghn
from small_settings import small_settings

from pipeline.architectures.shards import row, table_of, write_shard
from pipeline.architectures.store import write_manifest
from pipeline.errors import UserError
from pipeline.evaluation.stored_sources import read_sources, write_sources
from pipeline.evaluation.tables import CopyScores
from pipeline.params import Params, load_params
from pipeline.results import CHECKPOINT, MANIFEST
from pipeline.stages.copies import copies
from pipeline.stages.sgd import sgd

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

KEPT = Path("storage/copies")
RESULTS = Path("results/copies")
SOURCES = ARCHITECTURES[:3]
ONE_CELL_MORE = replace(SOURCES[0], n_cells=3)
SPLITS = {"test": [SOURCES[1], ONE_CELL_MORE, SOURCES[2]], "wide": SOURCES[:1], "bn_free": ARCHITECTURES[4:5]}
SPLITS |= {"train": SOURCES, "val": [architecture("conv_3x3", "skip_connect")]}
SPLITS |= {split: [ARCHITECTURES[3]] for split in ("deep", "dense")}


def settings(**changes: object) -> Params:
    Path("params.yaml").write_text(yaml.safe_dump(small_settings(**changes)))
    return load_params()


@pytest.fixture(scope="module")
def trained_sources(ray_on_this_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project folder with architectures of all splits, an untrained hypernetwork, and trained sources."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        shards = {
            split: write_shard(f"storage/{split}/0.parquet", table_of([row(*item) for item in enumerate(networks)]))
            for split, networks in SPLITS.items()
        }
        write_manifest(MANIFEST, {split: (split, [shard]) for split, shard in shards.items()})
        make_ghn(0).save(CHECKPOINT)
        sgd(settings(sgd={"architectures": {}, "sources": 3, "epochs": [8], "batch": 64}))
    return folder


@pytest.fixture
def project(trained_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(shutil.copytree(trained_sources, tmp_path / "project"))
    yield settings(copies={"architectures": 3})


def test_an_architecture_that_is_a_source_has_its_own_accuracy(project: Params) -> None:
    copies(project)
    scores = CopyScores.validate(pd.read_parquet(RESULTS / "architectures.parquet"))
    assert list(scores) == [
        *("split", "index", "name", "identity", "parameters", "nodes"),
        *("initialisation", "top1", "top5", "loss", "running_top1", "initialise_seconds", "seconds"),
        *("source", "similarity", "share_copied", "source_top1", "source_train_seconds"),
    ]
    assert scores["initialisation"].tolist() == ["copy_wl", "copy_embedding"] * (len(scores) // 2)
    sizes = {"test": 6, "wide": 2, "deep": 2, "dense": 2, "bn_free": 2, "predefined": 6}
    assert scores.groupby("split", sort=False).size().to_dict() == sizes
    assert scores["running_top1"].notna().tolist() == (scores["index"] < 1).tolist()

    sources = {source.index: source for source in read_sources()}
    for index, source in ((0, 1), (2, 2)):
        own = scores[(scores["split"] == "test") & (scores["index"] == index)]
        assert own["source"].tolist() == [source] * 2
        assert own["similarity"].tolist() == pytest.approx([1] * 2, abs=1e-5)
        assert own["share_copied"].tolist() == [1] * 2
        assert own["top1"].tolist() == pytest.approx([sources[source].top1] * 2, abs=1 / 360)  # one image of rounding
        assert own["top1"].min() > 0.5
        assert own["source_top1"].tolist() == [sources[source].top1] * 2
        assert own["source_train_seconds"].tolist() == [sources[source].train_seconds] * 2
    deeper = scores[(scores["split"] == "test") & (scores["index"] == 1)].iloc[0]
    assert deeper["source"] == 0 and deeper["similarity"] < 1 and deeper["share_copied"] < 1
    wide = scores[scores["split"] == "wide"].iloc[0]
    assert wide["source"] == 0 and wide["share_copied"] == 1
    assert wide["top1"] == pytest.approx(sources[0].top1, abs=0.05)

    metrics = json.loads((RESULTS / "metrics.json").read_text())
    total = sum(source.train_seconds for source in sources.values())
    assert metrics.pop("sources") == {"number": 3, "train_seconds": pytest.approx(total)}
    assert set(metrics) == set(sizes)
    of_test = scores[(scores["split"] == "test") & (scores["initialisation"] == "copy_wl")]
    assert metrics["test"]["copy_wl_top1"] == pytest.approx(of_test["top1"].mean())
    assert metrics["test"]["copy_wl_share_copied"] == pytest.approx(of_test["share_copied"].mean())
    assert not list(KEPT.iterdir())  # a stage that ended well measures all again the next time


def test_sources_that_cannot_be_copied_from_are_named(project: Params) -> None:
    sources = read_sources()
    write_sources([])
    with pytest.raises(UserError, match=r"sources\.json names no source to copy from"):
        copies(project)
    write_sources([replace(source, images_hash="0") for source in sources])
    with pytest.raises(UserError, match=r"trained on other images than dataset = digits at images\.size = 8"):
        copies(project)
    write_sources([replace(source, network_hash="0") for source in sources])
    with pytest.raises(UserError, match="architecture 0 of split train is not the one that"):
        copies(project)
    write_sources(sources)
    with pytest.raises(UserError, match=r"not the parameters of architecture \d of split train at evaluate\.width"):
        copies(settings(evaluate={"width": 16}))
    for source in sources:
        Path("storage", source.file).unlink()
    with pytest.raises(UserError, match=r"parameters of architecture \d of split train, is missing\n.*force sgd"):
        copies(project)
    Path("results/sgd/sources.json").unlink()
    with pytest.raises(UserError, match=r"sources\.json not found: stage sgd writes it"):
        copies(project)
    assert not RESULTS.exists()
