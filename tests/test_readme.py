"""What the README says is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from small_settings import ROOT
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands.one_network import render_network

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("table", ["report/accuracy", "report/finetuning", "generate/report/statistics"])
def test_its_tables_are_those_that_the_stages_wrote(table: str) -> None:
    assert (ROOT / f"results/{table}.md").read_text().strip() in README


def test_its_files_are_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    files = [link for link in links if "://" not in link]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_results_beside_it_are_those_of_the_settings() -> None:
    """DVC noted with which settings each stage was run last."""
    yaml = YAML(typ="safe")  # like DVC, it reads 1e-05 as a number
    locked = yaml.load(ROOT / "dvc.lock")["stages"]
    settings = yaml.load(ROOT / "params.yaml")
    for stage in locked.values():
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            section, _, name = key.rpartition(".")
            assert (settings[section] if section else settings)[name] == value, key


def test_its_python_examples_name_what_exists() -> None:
    imports = re.findall(r"^from ((?:ghn|pipeline)[\w.]*) import ([\w, ]+)$", README, re.MULTILINE)
    assert imports
    for module, names in imports:
        for name in names.split(", "):
            assert hasattr(__import__(module, fromlist=[name]), name)


def test_its_picture_is_what_its_command_draws(tmp_path: Path) -> None:
    render_network("resnet18", tmp_path / "resnet18.svg", num_classes=1000, image_size=None, virtual_edges=False)
    assert (tmp_path / "resnet18.svg").read_bytes() == (ROOT / "docs/resnet18.svg").read_bytes()


def test_its_commands_are_there_with_the_options_that_it_names() -> None:
    commands = re.findall(r"^ghn ([\w-]+)(.*?)(?:#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 6
    for command, arguments in commands:
        help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in help_text for option in re.findall(r"--[\w-]+", arguments)), command
