"""Command `ghn adapt`: a folder of images as users have it, and a small hypernetwork."""

from __future__ import annotations

from pathlib import Path

import pytest
from few_images import write_checkpoint, write_images
from typer.testing import CliRunner

from ghn import GHN
from pipeline.cli import app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with images and a checkpoint the working directory, and return that of the images."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "checkpoint")
    return write_images(tmp_path / "images")


def adapt(*arguments: str) -> tuple[int, str]:
    command = ["adapt", "--images", "images", "--checkpoint", "checkpoint", "--out", "adapted", *arguments]
    done = CliRunner().invoke(app, command)
    return done.exit_code, done.output


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_writes_a_hypernetwork_for_the_classes_of_a_folder(folder: Path) -> None:
    code, output = adapt("--shots", "4", "--steps", "24", "--learning-rate", "0.01")
    assert code == 0, output
    assert "adapted to images: 4 images of each of 3 classes" in output
    assert "unseen networks on 6 test images" in output
    ghn = GHN.from_pretrained("adapted")
    assert (ghn.config.num_classes, ghn.config.image_size, ghn.config.hidden) == (3, 8, 16)
    kept = float(output.partition("held-out images: top-1 ")[2].partition("%")[0])
    assert kept > 60  # a third is chance


def test_what_is_wrong_is_one_message_and_nothing_is_written(folder: Path) -> None:
    for arguments, message in {
        ("--shots", "9"): "class bright of images has 8 training images, of which at least one is held out: at most 7",
        ("--shots", "4", "--checkpoint", "nowhere"): "nowhere not found",
        ("--shots", "4", "--images", "nowhere"): "nowhere",
        ("--shots", "4", "--out", "images"): "images is not a checkpoint (it holds bright)",
    }.items():
        code, output = adapt(*arguments)
        assert code == 1 and message in " ".join(output.split())
        assert "Traceback" not in output
    for file in (folder / "dark").iterdir():
        file.unlink()
    code, output = adapt("--shots", "4")
    assert code == 1 and "dark" in output
    assert not Path("adapted").exists()
