"""Places with names that mean something elsewhere: in addresses, to a shell, or to the limits of the system."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from PIL import Image
from ray_for_processes import ray_for_processes
from small_settings import small_settings
from user_project import environment, git

from ghn import GHN, GHNConfig
from pipeline.errors import UserError
from pipeline.images.load import find_images, load_images
from pipeline.params import Params, load_params
from pipeline.storage.files import file_sizes, read_bytes, remove, require_writable, write_bytes
from pipeline.storage.paths import storage_url
from pipeline.tracking.store import tracking_uri

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

ODD = ("what?", "100%20", "a::b", "with space", "#1", "a:b", "[x]*", unicodedata.normalize("NFD", "é"), "a&b=c", "'\"")


def class_folders(folder: Path) -> Path:
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((9, 9, 3), 40 * number, dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ODD)
def test_a_local_storage_may_have_any_name(name: str, tmp_path: Path) -> None:
    storage = str(tmp_path / name)
    require_writable(storage)
    write_bytes(storage_url(storage, f"images/{name}/file"), b"content")
    assert (tmp_path / name / "images" / name / "file").read_bytes() == b"content"
    assert read_bytes(storage_url(storage, f"images/{name}/file")) == b"content"
    assert file_sizes(storage_url(storage, f"images/{name}")) == {"file": 7}
    remove(storage_url(storage, "images"))
    assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize("name", ODD)
def test_a_prefix_in_a_bucket_may_have_any_name(name: str, flaky_bucket: FlakyBucket) -> None:
    storage = f"s3://bucket/{name}"
    require_writable(storage)
    write_bytes(f"{storage}/{name}/file", b"content")
    assert read_bytes(f"{storage}/{name}/file") == b"content"
    assert file_sizes(f"{storage}/{name}") == {"file": 7}
    assert file_sizes(f"{storage}/") == {}
    remove(f"{storage}/{name}")
    assert file_sizes(f"{storage}/{name}") == {}


@pytest.mark.parametrize(
    "storage", ["file:///storage", "S3://bucket", "gs://bucket", "s3://user:pw@bucket", "s3:/bucket"]
)
def test_an_address_that_is_no_bucket_is_refused_by_name(storage: str, small_project: Callable[..., Params]) -> None:
    with pytest.raises(UserError) as caught:
        small_project(storage=storage)
    assert "must be a folder, or s3://bucket/prefix" in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("name", ODD)
def test_images_are_loaded_from_and_into_any_folder(name: str, small_project: Callable[..., Params]) -> None:
    class_folders(Path(name) / name)
    for dataset, folder in ((f"{name}/{name}", None), ("folder", f"{name}/{name}")):
        params = small_project(dataset=dataset, storage=f"{name}/storage", images={"folder": folder})
        images = load_images(params.dataset, params.images, params.storage)
        assert (images.name, len(images.train) + len(images.test)) == (name, 6)
        assert Path(images.place).parent == Path(name, "storage", "images").resolve()


def test_a_checkpoint_may_lie_anywhere(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*ODD[:-1])
    GHN(GHNConfig(num_classes=3, image_size=8, hidden=8, kernel=3)).save(folder)
    assert GHN.from_pretrained(folder).config.num_classes == 3


@pytest.mark.parametrize("name", ["what?", "100%20"])
def test_a_project_whose_name_an_address_cannot_have_is_refused_because_of_the_store(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "params.yaml").touch()
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLflow cannot keep its store in ") as caught:
        tracking_uri()
    assert str(tmp_path / name) in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


def test_a_relative_folder_is_meant_from_the_workspace_also_in_a_copy_of_dvc(
    small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = small_project(dataset="pictures")
    class_folders(Path("pictures").absolute())
    (copy := Path(".dvc/tmp/exps/standalone/tmpab12").absolute()).mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert find_images("pictures", params.images, params.storage).found.num_images == 6
    settings = params.images.model_copy(update={"folder": "pictures"})
    assert find_images("folder", settings, params.storage).found.num_images == 6
    with pytest.raises(UserError, match=rf"image folder {copy.parents[4]}/nowhere does not exist"):
        find_images("folder", params.images.model_copy(update={"folder": "nowhere"}), params.storage)


def stage_command(stage: str) -> str:
    return f'"{sys.executable}" -m pipeline.cli {stage}'


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with git and DVC whose images are not in git, the current folder."""
    folder = tmp_path / "my project"
    class_folders(folder / "pictures")
    monkeypatch.chdir(folder)
    Path("params.yaml").write_text(yaml.safe_dump(small_settings(dataset="pictures")))
    Path(".gitignore").write_text("/pictures\n/storage\n/results\n")
    check = {"cmd": stage_command("check"), "deps": ["params.yaml"], "outs": ["results/check/passed"]}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": {"check": check}}))
    git(folder, "init", "--quiet")
    dvc("init", "--quiet")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "first")
    return folder


def dvc(*arguments: str) -> str:
    names = {"GIT_AUTHOR_NAME": "T", "GIT_AUTHOR_EMAIL": "t@example.org"}
    names |= {"GIT_COMMITTER_NAME": "T", "GIT_COMMITTER_EMAIL": "t@example.org", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, env=environment(**names)
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "commands",
    [
        [("--temp", "-S", "seed=7", "--name", "otter")],
        [("--queue", "-S", "seed=7", "--name", "otter"), ("--run-all", "--jobs", "1")],
    ],
    ids=["temp", "queue"],
)
def test_an_experiment_in_a_copy_finds_images_that_git_does_not_know(
    commands: list[tuple[str, ...]], experiments: Path
) -> None:
    for options in commands:
        dvc("exp", "run", *options)
    assert "otter" in dvc("exp", "list")


@pytest.mark.slow
def test_ray_starts_below_a_temporary_folder_with_a_path_too_long_for_its_sockets() -> None:
    command = (
        "import ray; from pipeline.cluster.ray_cluster import ray_cluster\nwith ray_cluster(num_cpus=1): print('up')"
    )
    with TemporaryDirectory() as scratch:
        long = Path(scratch, "x" * 60, "y" * 40)
        long.mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-c", command], capture_output=True, text=True, env=environment(TMPDIR=str(long))
        )
    assert (done.returncode, done.stdout) == (0, "up\n"), done.stderr
    assert "TMPDIR is too long a path for Ray's sockets: Ray keeps its files in /tmp/ray" in done.stderr


@pytest.mark.slow
def test_all_that_training_writes_lies_where_it_is_meant_to_lie(
    small_project: Callable[..., Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "a #1::é"
    project.mkdir()
    values = yaml.safe_dump(small_settings(storage="sto::re %20#", dataset="digits"))
    monkeypatch.chdir(project)
    Path("params.yaml").write_text(values)
    load_params()
    with ray_for_processes() as address:
        for stage in ("check", "generate", "train"):
            command = [sys.executable, "-m", "pipeline.cli", stage]
            done = subprocess.run(command, capture_output=True, text=True, env=environment(RAY_ADDRESS=address))
            assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {project.name}
    assert {path.name for path in project.iterdir()} <= {
        *(".ghn", "mlartifacts", "mlflow.db", "params.yaml", "results", "sto::re %20#"),
    }
    assert os.path.isfile("results/train/checkpoint/config.json")
    assert list(Path("sto::re %20#", "images").glob("digits-8-*/meta.json"))
