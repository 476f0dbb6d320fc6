"""The floors as docs/architecture.md shows them: how many rooms, how many arrows, no circle.

A room is a folder with modules. Modules that lie directly in `pipeline` are on two floors: its doors (`cli`, `submit`)
at the top, and the ground that all others stand on. The settings belong to the ground, although they are a folder: all
others import `pipeline.params` alone. An arrow leads from a room to another that one of its modules
imports, also within a function. Which arrows may be, say the contracts of import-linter in `make lint`.
"""

from __future__ import annotations

import re
import sys

import grimp
import pytest
from small_settings import ROOT

MOST_ROOMS, MOST_ARROWS = 22, 83

STANDARD = sys.stdlib_module_names

DOORS = {"pipeline.cli", "pipeline.submit"}
SETTINGS = "pipeline.params"

Arrow = tuple[str, str]


@pytest.fixture(scope="module")
def modules() -> grimp.ImportGraph:
    return grimp.build_graph("ghn", "pipeline", cache_dir=None)


@pytest.fixture(scope="module")
def arrows(modules: grimp.ImportGraph) -> set[Arrow]:
    pairs = {
        (room_of(module), room_of(imported))
        for module in modules.modules
        for imported in modules.find_modules_directly_imported_by(module)
    }
    return {(room, other) for room, other in pairs if room != other}


def room_of(module: str) -> str:
    if module in DOORS:
        return "the doors of the pipeline"
    if module == SETTINGS or module.startswith(f"{SETTINGS}."):
        return "pipeline"
    if (ROOT / module.replace(".", "/")).is_dir():
        return module
    return module.rpartition(".")[0]


def test_there_are_few_rooms(modules: grimp.ImportGraph) -> None:
    rooms = {room_of(module) for module in modules.modules}
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)


def test_there_are_few_arrows_between_rooms(arrows: set[Arrow]) -> None:
    assert len(arrows) <= MOST_ARROWS, sorted(arrows)


def test_no_arrow_leads_back(arrows: set[Arrow]) -> None:
    """Rooms that nothing is left to import are taken away until none is left; a circle would stay."""
    left = set(arrows)
    while left:
        lowest = {other for _, other in left} - {room for room, _ in left}
        assert lowest, sorted(left)
        left = {(room, other) for room, other in left if other not in lowest}


def test_the_library_stands_alone(modules: grimp.ImportGraph) -> None:
    """`ghn` is plain PyTorch: what it imports of others is what pyproject.toml requires without extras."""
    if_installed = {"torchvision", "timm", "transformers", "huggingface_hub", "triton"}
    allowed = {"ghn", "numpy", "safetensors", "scipy", "torch"} | if_installed
    for path in (ROOT / "ghn").rglob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
            assert name in allowed or name in STANDARD, f"{path} imports {name}"


def test_the_documented_floors_name_every_folder() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    for package in ("ghn", "pipeline"):
        for folder in (ROOT / package).iterdir():
            if (folder / "__init__.py").exists():
                assert re.search(rf"\b{folder.name}\b", page), folder
