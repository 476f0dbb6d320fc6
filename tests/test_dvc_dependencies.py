"""The dependencies in dvc.yaml are what the stages import: nothing is missing, and nothing is there in vain."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import grimp
import pytest
import yaml
from small_settings import ROOT

from pipeline.results import CHECKPOINT

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]

CHANGE_NO_RESULT = {
    "pipeline/cluster": "where and when tasks run; their results do not depend on it",
    "pipeline/console.py": "what the terminal shows",
    "pipeline/contracts.py": "what a table must be: one that is not is refused",
    "pipeline/errors.py": "exceptions",
    "pipeline/evaluation/tables.py": "what a table must be",
    "pipeline/params": "stages depend on the values of the parameters",
    "pipeline/results.py": "where the outputs lie, which dvc.yaml names",
    "pipeline/secrets.py": "what messages hide",
    "pipeline/tracking": "what MLflow logs",
    "pipeline/workspace.py": "where the project lies",
}
"""What stages import and do not depend on, nor on what only these modules import; and why."""

NAMES_ONLY = "ghn"
"""The package that users import. It imports nothing itself, so that an import from it hides a dependency."""


@cache
def imports() -> grimp.ImportGraph:
    """Return all imports between modules, those inside functions too; not those that only type checkers see."""
    return grimp.build_graph("ghn", "pipeline", exclude_type_checking_imports=True, cache_dir=None)


def file_of(module: str) -> str:
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


def imported_files(stage: str) -> set[str]:
    """Return the files of all modules that a stage runs, its own too, up to those that change no result."""
    found: set[str] = set()
    waiting = [f"pipeline.stages.{stage}"]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        if not lies_in(file_of(module), CHANGE_NO_RESULT):
            waiting += imports().find_modules_directly_imported_by(module)
    return {file_of(module) for module in found}


def code_of(stage: str) -> list[str]:
    """Return the dependencies of a stage that are code."""
    return [name for name in STAGES[stage]["deps"] if name.startswith(("ghn", "pipeline"))]


def lies_in(file: str, places: Iterable[str]) -> bool:
    return any(Path(file).is_relative_to(place) for place in places)


def test_every_stage_is_a_module_and_a_command() -> None:
    modules = {file.stem for file in (ROOT / "pipeline/stages").glob("*.py")} - {"__init__"}
    assert set(STAGES) == modules
    for stage in STAGES:
        axes = [f"${{item.{axis}}}" for axis in STAGES[stage].get("matrix", {})]
        assert STAGES[stage]["cmd"] == " ".join(["ghn", stage, *axes])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_that_it_imports(stage: str) -> None:
    missing = {file for file in imported_files(stage) if not lies_in(file, [*code_of(stage), *CHANGE_NO_RESULT])}
    assert missing == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_nothing_that_it_does_not_import(stage: str) -> None:
    files = imported_files(stage)
    superfluous = {place for place in code_of(stage) if not any(lies_in(file, [place]) for file in files)}
    assert superfluous == set()


def test_only_the_check_depends_on_what_changes_no_result() -> None:
    found = {(stage, place) for stage in STAGES for place in code_of(stage) if lies_in(place, CHANGE_NO_RESULT)}
    assert found == {("check", "pipeline/params")}


def test_what_changes_no_result_is_imported_by_some_stage() -> None:
    files = set().union(*map(imported_files, STAGES))
    assert [place for place in CHANGE_NO_RESULT if not any(lies_in(file, [place]) for file in files)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_hides_a_dependency_behind_the_names_of_the_package(stage: str) -> None:
    importers = map(file_of, imports().find_modules_that_directly_import(NAMES_ONLY))
    assert imported_files(stage) & {file for file in importers if not lies_in(file, CHANGE_NO_RESULT)} == set()


def test_dependencies_are_folders_but_for_single_modules_with_a_reason() -> None:
    files = {(stage, place) for stage in STAGES for place in code_of(stage) if place.endswith(".py")}
    own = {(stage, f"pipeline/stages/{stage}.py") for stage in STAGES}
    evaluation = {
        (stage, file)
        for stage in ("sgd", "study")  # which take long
        for file in imported_files(stage)
        if file.startswith("pipeline/evaluation/") and not lies_in(file, CHANGE_NO_RESULT)
    }
    spaces = {(stage, "ghn/design_spaces.py") for stage in STAGES if "ghn/gpt" in code_of(stage)}  # the names of rooms
    assert files - own == {("train", "pipeline/evaluation/scores.py")} | evaluation | spaces


def test_training_networks_by_sgd_needs_no_hypernetwork() -> None:
    assert not any(lies_in(file, ["ghn/models", "ghn/training"]) for file in imported_files("sgd"))
    assert not any(name.startswith("results/train") for name in STAGES["sgd"]["deps"])


def test_the_plots_and_templates_concern_the_pages_only() -> None:
    assert {stage for stage in STAGES if "pipeline/reporting" in code_of(stage)} == {"describe", "report"}


def test_neither_training_nor_evaluation_runs_the_tracer() -> None:
    traces = [stage for stage in STAGES if any(lies_in(file, ["ghn/tracing"]) for file in imported_files(stage))]
    assert traces == ["detect"]  # its backbones are modules of torchvision


def test_no_stage_depends_on_how_training_is_run() -> None:
    read = {stage: [name.partition(".")[0] for name in STAGES[stage].get("params", [])] for stage in STAGES}
    assert [stage for stage in STAGES if {"workers", "cluster", "tracking"} & set(read[stage])] == []


def test_every_stage_but_the_check_waits_for_it() -> None:
    assert [stage for stage in STAGES if "results/check/passed" not in STAGES[stage]["deps"]] == ["check"]


def test_every_parameter_that_a_stage_names_exists() -> None:
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in STAGES:
        for name in STAGES[stage].get("params", []):
            value = settings
            for key in name.removesuffix(".${item.variant}").split("."):
                assert key in value, f"{stage}: {name}"
                value = value[key]


def test_the_plots_and_the_model_that_dvc_offers_are_outputs_of_training() -> None:
    outputs = {out if isinstance(out, str) else next(iter(out)) for out in STAGES["train"]["outs"]}
    plots = [plot for each in PIPELINE["plots"] for plot in each.values()]
    assert {file for plot in plots for file in plot["y"]} == {"results/train/history.csv"}
    assert (PIPELINE["artifacts"]["ghn"]["type"], PIPELINE["artifacts"]["ghn"]["path"]) == ("model", str(CHECKPOINT))
    assert {"results/train/history.csv", str(CHECKPOINT)} <= outputs
