"""Predictions that are written as they are made: the same numbers, in files of the size that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from examples import tiny_ghn
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ghn import GHN, GHNConfig, load, write_predicted
from ghn.models.sharded import INDEX_FILE, shards_of

GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 20}


def gpt() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT))


def on_meta(make: Any) -> Any:
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("decoder", ["conv", "low_rank"])
@pytest.mark.parametrize("dirac", [False, True])
def test_the_files_hold_what_is_predicted_in_memory(tmp_path: Path, decoder: str, dirac: bool) -> None:
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(10, 32, hidden=8, kernel=3, decoder=decoder, dirac=dirac))
    network = load("resnet18", num_classes=10)
    report = ghn.predict(network)
    written = write_predicted(ghn, report.graph, tmp_path / "out", shard_bytes=5_000_000)
    assert len(written.files) > 3
    tensors = {name: tensor for file in written.files for name, tensor in load_file(file).items()}
    assert tensors.keys() == dict(network.named_parameters()).keys()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(tensors[name], parameter.detach(), msg=name)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())["weight_map"]
    assert {name: (tmp_path / "out" / file) for name, file in index.items()} == {
        name: file for file in written.files for name in load_file(file)
    }
    assert (written.repeated, written.rank) == (report.repeated, report.rank)
    assert "from a graph of 53 nodes" in str(written)


def test_transformers_reads_the_folder_and_ties_stay_tied(tmp_path: Path) -> None:
    ghn = tiny_ghn()
    network = on_meta(gpt)
    write_predicted(ghn, ghn.graph(network), tmp_path / "out", shard_bytes=20_000)
    network.config.to_json_file(tmp_path / "out/config.json")
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    expected = gpt()
    report = ghn.predict(expected)
    assert report.not_predicted == {}
    for (name, parameter), other in zip(loaded.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, msg=name)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    ghn = tiny_ghn()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        write_predicted(ghn, ghn.graph(on_meta(gpt)), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_shards_are_written_as_soon_as_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    monkeypatch.setattr(
        "ghn.models.sharded.save_file",
        lambda tensors, path, metadata: (held.append(sum(tensor.nbytes for tensor in tensors.values())), path.touch()),
    )
    ghn = tiny_ghn()
    graph = ghn.graph(on_meta(lambda: load("hf/gpt2")))
    write_predicted(ghn, graph, tmp_path / "out", shard_bytes=60_000_000)
    largest = max(parameter.size for parameter in graph.parameters) * 4
    assert largest > 100_000_000 and max(held) == largest
    assert sorted(held)[-2] <= 60_000_000


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1), st.integers(1, 60))
def test_shards_keep_the_order_and_are_as_full_as_they_can_be(sizes: dict[str, int], most: int) -> None:
    shards = shards_of(sizes, most)
    assert [name for names in shards for name in names] == list(sizes)
    totals = [sum(sizes[name] for name in names) for names in shards]
    assert all(total <= most or len(names) == 1 for total, names in zip(totals, shards, strict=True))
    assert all(total + sizes[names[0]] > most for total, names in zip(totals, shards[1:], strict=False))
