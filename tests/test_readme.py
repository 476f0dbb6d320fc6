"""The README and the other documents: what they name exists, and what they show is what the code makes."""

from __future__ import annotations

import re
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML
from small_settings import ROOT
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.one_network import render_network
from pipeline.params import Params, leaves, set_leaf

README = (ROOT / "README.md").read_text()

DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
"""Documents whose paths exist; the changelog also names what is gone."""

WITH_SETTINGS = [*DOCUMENTS, *(ROOT / name for name in ("CHANGELOG.md", "cluster.yaml", "params.yaml"))]
WITH_SETTINGS += sorted((ROOT / "params").glob("*.yaml"))
"""Files that name settings of commands."""

MADE_BY_A_RUN = {"storage/"}
"""Paths that a new clone does not have."""

PATH_SUFFIXES = (".csv", ".html", ".json", ".md", ".png", ".py", ".svg", ".toml", ".yaml", "/")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("table", ["report/accuracy", "report/worth", "generate/report/statistics"])
def test_its_tables_are_those_that_the_stages_wrote(table: str) -> None:
    assert (ROOT / f"results/{table}.md").read_text().strip() in README


def test_its_rows_of_fine_tuning_are_those_that_the_stage_wrote() -> None:
    header, _, *rows = (ROOT / "results/report/finetuning.md").read_text().strip().splitlines()
    shown = README.split(header)[1].split("\n\n")[0].strip().splitlines()[1:]
    assert shown == [row for row in rows if row.split("|")[2].strip() == "10"]


def test_its_files_are_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    files = [link.partition("#")[0] for link in links if "://" not in link]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_results_beside_it_are_those_of_the_settings() -> None:
    """Compare with dvc.lock, where DVC notes the settings of each stage's last run."""
    yaml = YAML(typ="safe")  # like DVC, it reads 1e-05 as a number
    locked = yaml.load(ROOT / "dvc.lock")["stages"]
    settings = yaml.load(ROOT / "params.yaml")
    for stage in locked.values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            assert reduce(getitem, key.split("."), settings) == value, key


def test_its_python_examples_name_what_exists() -> None:
    imports = re.findall(r"^from ((?:ghn|pipeline)[\w.]*) import ([\w, ]+)$", README, re.MULTILINE)
    assert imports
    for module, names in imports:
        for name in names.split(", "):
            assert hasattr(__import__(module, fromlist=[name]), name)


def test_its_picture_is_what_its_command_renders(tmp_path: Path) -> None:
    render_network("resnet18", tmp_path / "resnet18.svg", num_classes=1000, image_size=None, virtual_edges=False)
    assert (tmp_path / "resnet18.svg").read_bytes() == (ROOT / "docs/resnet18.svg").read_bytes()


def test_its_commands_are_there_with_the_options_that_it_names() -> None:
    commands = re.findall(r"^ghn ([\w-]+)(.*?)(?:#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 6
    for command, arguments in commands:
        help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in help_text for option in re.findall(r"--[\w-]+", arguments)), command


@pytest.mark.parametrize("file", WITH_SETTINGS, ids=relative)
def test_settings_of_commands_exist_and_are_possible(file: Path) -> None:
    """The leaderboard is left out: its commands have the settings of the commits that it names."""
    text = re.sub(r"<!-- leaderboard: .*?<!-- end of leaderboard -->", "", file.read_text(), flags=re.DOTALL)
    lines = [re.findall(r"-S ([\w.]+)=([^\s`]+)", line) for line in text.splitlines()]
    keys = {".".join(keys) for keys, _ in leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))}
    for changes in filter(None, lines):
        assert {key for key, _ in changes} <= keys
        values = yaml.safe_load((ROOT / "params.yaml").read_text())
        for key, value in changes:
            set_leaf(values, tuple(key.split(".")), yaml.safe_load(value))
        Params.model_validate(values)


@pytest.mark.parametrize("file", DOCUMENTS, ids=relative)
def test_settings_that_documents_name_exist(file: Path) -> None:
    """A setting is named in backticks, after its section."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    sections = "|".join(key for key, value in values.items() if isinstance(value, dict))
    for key in re.findall(rf"`((?:{sections})\.[\w.]+)(?:: \w+)?`", file.read_text()):
        if not key.endswith(PATH_SUFFIXES):
            place = values
            for name in key.split("."):
                assert name in place, key
                place = place[name]


@pytest.mark.parametrize("file", DOCUMENTS, ids=relative)
def test_paths_that_documents_name_exist(file: Path) -> None:
    """A path is that of the repository, or of the document's folder; a file's name alone is enough."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = re.findall(r"`([\w./-]+)`", file.read_text())
    paths = {name for name in named if name.endswith(PATH_SUFFIXES) or ("/" in name and name.split("/")[0] in folders)}
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text()) if "://" not in link}
    missing = {link for link in links if not (file.parent / link).exists()}
    for path in paths - MADE_BY_A_RUN:
        places = [ROOT / path, file.parent / path]
        if "/" not in path:
            places += [found for room in ("ghn", "pipeline", "tests", "results") for found in (ROOT / room).rglob(path)]
        if not any(place.exists() for place in places):
            missing.add(path)
    assert missing == set()


@pytest.mark.parametrize("room", ["ghn", "pipeline"])
def test_every_room_is_on_the_floors_of_the_architecture(room: str) -> None:
    floors = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    rooms = {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"\w+", floors))
