"""Command `ghn predict --shots`: a network for the classes of a few images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision
from few_images import CLASSES, write_checkpoint, write_images
from safetensors.torch import load_model
from typer.testing import CliRunner

from pipeline.cli import app


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder with images and a checkpoint the working directory."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "checkpoint")
    write_images(tmp_path / "images")


def predict(name: str, *arguments: str) -> tuple[int, str]:
    command = ["predict", name, "--checkpoint", "checkpoint", "--out", "network.safetensors", *arguments]
    done = CliRunner().invoke(app, command)
    return done.exit_code, done.output


def test_a_network_of_torchvision_classifies_the_images_of_a_folder() -> None:
    code, output = predict("resnet18", "--shots", "images")
    assert code == 0, output
    assert "fc fitted to 24 images of 3 classes of images" in output
    measured = output.partition("when it is left out, ")[2]
    assert "% on 6 others" in measured and float(measured.partition("%")[0]) > 60  # a third is chance
    network = torchvision.models.resnet18(num_classes=len(CLASSES))
    load_model(network, "network.safetensors")


def test_an_architecture_of_deepnets_keeps_no_statistics() -> None:
    code, output = predict("test/0", "--shots", "images")
    assert code == 0, output
    assert "fitted to 24 images of 3 classes" in output


def test_what_is_wrong_is_one_message_and_nothing_is_written() -> None:
    for name, arguments, message in (
        ("resnet18", ("--shots", "images", "--classes", "3"), "leave out --images, --classes"),
        ("resnet18", ("--shots", "nowhere"), "nowhere"),
        ("squeezenet1_1", ("--shots", "images", "--image-size", "32"), "one linear layer that gives the logits"),
    ):
        code, output = predict(name, *arguments)
        assert code == 1 and message in " ".join(output.split()), output
        assert "Traceback" not in output
    assert not Path("network.safetensors").exists()
