"""The commands about one network: what they print and what they leave."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision
from hub_server import HubServer
from safetensors.torch import load_file, load_model
from small_settings import ROOT
from typer.testing import CliRunner

from ghn import GHN, GHNConfig, load, use_batch_statistics
from pipeline.architectures.store import ArchitectureStore
from pipeline.cli import app

GOLDEN = ROOT / "tests/golden"


def run(*arguments: object) -> str:
    """Return what a command prints; it must succeed."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: object) -> str:
    """Return what a command prints on the standard error; it must fail with status 1."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) <= 3
    return done.stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GHN(GHNConfig(num_classes=10, image_size=32, hidden=8, kernel=3)).save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_names_are_listed_one_a_line() -> None:
    assert run("list", "resnet1*").split() == ["resnet101", "resnet152", "resnet18"]
    assert "no architecture is called 'nothing*'" in refused("list", "nothing*")


def test_a_language_model_is_predicted_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(num_classes=256, image_size=16, hidden=8, kernel=5))
    ghn.save(tmp_path / "checkpoint")
    predict = ("predict", "gpt/test/0", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "gpt.safetensors")
    assert re.search(r"gpt/test/0: predicted \d+ parameters", run(*predict))
    module = load("gpt/test/0", 256, 16)
    load_model(module, tmp_path / "gpt.safetensors")
    ghn.predict(expected := load("gpt/test/0", 256, 16))
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(module(tokens), expected(tokens))
    assert "gpt/test/0 is a language model" in refused(*predict, "--images", "digits")
    assert "gpt/test/0 is a language model" in refused(*predict, "--shots", "digits")
    assert "nodes, written to" in run("graph", "gpt/deep/0", "--out", tmp_path / "gpt.svg")


def test_a_network_is_predicted_into_a_file_that_torchvision_loads(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "resnet18.safetensors"
    printed = run("predict", "resnet18", "--checkpoint", checkpoint, "--out", out)
    assert "resnet18: predicted 62 parameters (11,181,642 elements) from a graph of 53 nodes" in printed
    assert "20 norm layers use the statistics of each batch" in printed
    assert "call ghn.use_batch_statistics(network) before it is loaded" in printed
    network = torchvision.models.resnet18(num_classes=10)
    use_batch_statistics(network)
    load_model(network, out)
    expected = torchvision.models.resnet18(num_classes=10)
    GHN.from_pretrained(checkpoint).predict(expected)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(network.eval()(x), expected.eval()(x))
    assert out.stat().st_mode & 0o777 == (checkpoint / "config.json").stat().st_mode & 0o777
    assert [path.name for path in out.parent.iterdir()] == ["resnet18.safetensors"]


def test_images_give_running_statistics_and_a_score(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "network.safetensors"
    arguments = ["--images", "digits", "--image-size", 16, "--cache", tmp_path / "cache"]
    printed = run("predict", "resnet18", "--checkpoint", checkpoint, "--out", out, *arguments)
    assert "running statistics of 20 norm layers estimated from images" in printed
    assert re.search(r"top-1 on the 359 test images of digits: \d+\.\d%", printed)
    network = torchvision.models.resnet18(num_classes=10)
    load_model(network, out)  # strict: nothing is missing
    assert not torch.equal(network.bn1.running_mean, torch.zeros(64))


def test_a_large_network_is_predicted_into_a_folder_of_shards(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "gpt2"
    printed = run("predict", "hf/gpt2", "--checkpoint", checkpoint, "--out", out, "--shards")
    assert "hf/gpt2: predicted 148 parameters (124,439,808 elements) from a graph of 161 nodes" in printed
    assert "channels of 50 weights repeat: transformer.wte.weight" in printed
    names = sorted(path.name for path in out.iterdir())
    assert names[0] == "config.json" and names[-1] == "model.safetensors.index.json"
    assert f"written to {out}, in {len(names) - 2} files" in printed
    assert "must be a new folder" in refused("predict", "hf/gpt2", "--checkpoint", checkpoint, "--out", out, "--shards")
    arguments = ("--checkpoint", checkpoint, "--out", tmp_path / "other", "--shards", "--images", "digits")
    assert "leave out --images" in refused("predict", "resnet18", *arguments)


def test_networks_of_ours_are_scored_and_keep_to_the_statistics_of_the_batch(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--images", "digits", "--image-size", 16, "--cache", tmp_path / "cache"]
    printed = run("predict", "deep/7", "--checkpoint", checkpoint, "--out", tmp_path / "out", *arguments)
    assert "top-1 on the 359 test images of digits" in printed and "running statistics" not in printed
    load("deep/7", num_classes=10, image_size=16).load_state_dict(load_file(tmp_path / "out"))


@pytest.mark.parametrize(
    ("option", "reason"),
    [("--no-class-layers", "the classification layer is not predicted"), ("--classes=7", "the network 7")],
)
def test_there_is_no_score_without_a_predicted_head(checkpoint: Path, tmp_path: Path, option: str, reason: str) -> None:
    arguments = ["--images", "digits", "--image-size", 16, "--cache", tmp_path / "cache", option]
    printed = run("predict", "timm/resnet10t", "--checkpoint", checkpoint, "--out", tmp_path / "out", *arguments)
    assert f"no score: {reason}" in printed.replace("digits has 10 classes, ", "")


def test_images_that_are_too_small_are_refused_before_they_are_decoded(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--images", "digits", "--image-size", 8, "--cache", tmp_path / "cache"]
    message = refused("predict", "alexnet", "--checkpoint", checkpoint, "--out", tmp_path / "out", *arguments)
    assert "AlexNet does not run on inputs of (2, 3, 8, 8)" in message
    assert not (tmp_path / "cache").exists()


def test_places_that_cannot_be_written_are_named_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.svg").mkdir()
    files = [GOLDEN / "deepnets1m_train.hdf5", GOLDEN / "deepnets1m_train_meta.json"]
    for command in (
        ["predict", "resnet18", "--checkpoint", checkpoint],
        ["export-ghn", checkpoint],
        ["graph", "resnet18"],
    ):
        assert "folder.svg is a folder" in refused(*command, "--out", tmp_path / "folder.svg")
        assert "cannot be written" in refused(*command, "--out", tmp_path / "file" / "below.svg")
    assert "cannot be written" in refused("import-ghn", GOLDEN / "ghn2.pt", "--out", tmp_path / "file" / "below")
    assert "cannot be written" in refused("import-deepnets", *files, "--storage", tmp_path / "file")


def test_class_layers_and_other_classes_are_said(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "network.safetensors"
    command = ["predict", "predefined/darts", "--checkpoint", checkpoint, "--out", out]
    assert "classification layer of 7 classes" in run(*command, "--classes", 7)
    assert len(load_file(out)["classifier.weight"]) == 7
    assert "classification layer (predict_class_layers=False)" in run(*command, "--no-class-layers")


def test_a_published_ghn_is_imported_exported_and_used_as_it_is(tmp_path: Path) -> None:
    published = GOLDEN / "ghn2.pt"
    assert "variant ghn2, hidden 32" in run("import-ghn", published, "--out", tmp_path / "checkpoint")
    run("export-ghn", tmp_path / "checkpoint", "--out", tmp_path / "exported.pt")
    before, after = (torch.load(file, weights_only=True) for file in (published, tmp_path / "exported.pt"))
    assert before["config"] == after["config"]
    assert all(torch.equal(weight, after["state_dict"][name]) for name, weight in before["state_dict"].items())
    for name, checkpoint in (("a", published), ("b", tmp_path / "checkpoint"), ("c", tmp_path / "exported.pt")):
        run("predict", "deep/0", "--checkpoint", checkpoint, "--out", tmp_path / name)
    files = [load_file(tmp_path / name) for name in "abc"]
    assert all(torch.equal(files[0][name], file[name]) for file in files for name in files[0])


def test_a_ghn_on_the_hub_is_used_and_imported_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer.in_place_of_the_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.repositories["them/ghn2"] = {"small/ghn2.pt": (GOLDEN / "ghn2.pt").read_bytes()}
        address = "hf://them/ghn2/small/ghn2.pt"
        run("predict", "deep/0", "--checkpoint", address, "--out", tmp_path / "of_hub")
        assert "variant ghn2, hidden 32" in run("import-ghn", address, "--out", tmp_path / "checkpoint")
        assert "them/nobody" in refused("export-ghn", "hf://them/nobody", "--out", tmp_path / "out.pt")
    run("predict", "deep/0", "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "of_folder")
    one, other = load_file(tmp_path / "of_hub"), load_file(tmp_path / "of_folder")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_a_graph_is_drawn(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new" / f"graph.{suffix}"
    assert "written to" in run("graph", "resnet18", "--out", out)
    assert out.stat().st_size > 1000


def test_a_graph_of_our_own_is_drawn_with_virtual_edges(tmp_path: Path) -> None:
    run("graph", "train/1", "--out", tmp_path / "plain.svg", "--classes", 10, "--image-size", 32)
    run("graph", "train/1", "--out", tmp_path / "virtual.svg", "--classes", 10, "--image-size", 32, "--virtual-edges")
    assert (tmp_path / "virtual.svg").stat().st_size > (tmp_path / "plain.svg").stat().st_size


def test_what_is_wrong_is_named(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.svg"
    assert "did you mean resnet50" in refused("predict", "resnet51", "--checkpoint", checkpoint, "--out", out)
    assert "did you mean resnet50" in refused("graph", "resnet51", "--out", out)
    nothing = tmp_path / "nothing"
    assert "nothing not found: must be a" in refused("predict", "resnet18", "--checkpoint", nothing, "--out", out)
    assert "nothing not found" in refused("import-ghn", nothing, "--out", tmp_path / "imported")
    assert "without executing code" in refused("import-ghn", GOLDEN / "ghn2.json", "--out", tmp_path / "imported")
    assert "does not run on inputs of (2, 3, 8, 8)" in refused("graph", "alexnet", "--image-size", 8, "--out", out)
    wrong = refused("predict", "resnet18", "--checkpoint", checkpoint, "--out", out, "--images", "no-such-set")
    assert "no-such-set" in wrong
    assert not out.exists()


def test_a_graph_format_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "graph.txt" in refused("graph", "resnet18", "--out", tmp_path / "graph.txt")


def test_networks_of_timm_are_predicted(checkpoint: Path, tmp_path: Path) -> None:
    assert "not predicted" not in run(
        "predict", "timm/resnet10t", "--checkpoint", checkpoint, "--out", tmp_path / "out"
    )
    assert load("timm/resnet10t", num_classes=10).state_dict().keys() >= load_file(tmp_path / "out").keys()


def test_published_architectures_are_imported_and_the_setting_that_uses_them_is_printed(tmp_path: Path) -> None:
    files = [GOLDEN / "deepnets1m_train.hdf5", GOLDEN / "deepnets1m_train_meta.json"]
    printed = run("import-deepnets", *files, "--split", "train", "--storage", tmp_path)
    assert "generate:\n  imported: {train: architectures/train/imported-" in printed
    manifest = next(tmp_path.rglob("manifest.json"))
    assert len(ArchitectureStore(str(tmp_path), manifest)["train"]) == 20
    assert "has no split val: it has train" in refused("import-deepnets", *files, "--split", "val")
