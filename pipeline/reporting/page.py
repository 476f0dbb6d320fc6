"""Parts that all pages share: tables, figures for two widths, templates, and where a page comes from."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from pipeline.reporting import plots
from pipeline.reporting.theme import THEME
from pipeline.storage.files import write_bytes
from pipeline.workspace import CODE, commit_and_changes

MOST_CHANGED_FILES = 3
"""Files with uncommitted changes that a page names."""


LARGEST_GRAPH = 300
"""Nodes: a larger graph gets no picture, because the page would be slow to load."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `words` columns are left-aligned, the others hold numbers."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int = 1

    def markdown(self) -> str:
        """Return the table in Markdown, a line a row and without padding, so that a changed cell changes one line."""
        rules = tuple(":--" if column < self.words else "--:" for column in range(len(self.columns)))
        lines = (self.columns, rules, *self.rows)
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


class HeadlineNumber(NamedTuple):
    """A number at the top of a page. The one that the page is about has `is_accent`."""

    value: str
    unit: str
    name: str
    detail: str
    is_accent: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure for any width (inches), and the sentence below it."""

    caption: str
    render: Callable[[float], Figure]


class PageFigure(NamedTuple):
    """A figure as a page shows it: its caption, and an `<svg>` element for wide and for narrow windows."""

    caption: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class GraphPicture:
    """A rendered graph.

    Attributes:
        name: split and index, such as `deep/7`.
        counts: the numbers of nodes, edges and parameters, in words.
        svg: the `<svg>` element.
        width: CSS pixels.
        primitives: those that occur in the graph.
    """

    name: str
    counts: str
    svg: str
    width: int
    primitives: frozenset[str]


class GraphGallery(NamedTuple):
    """Rendered graphs of some splits: of each, the first with at most `small` nodes, or the smallest.

    `colors` has the colour of each primitive that occurs in one of them, in the order of the legend.
    """

    pictures: list[GraphPicture]
    colors: dict[str, str]
    small: int


def write_figures(figures: Mapping[str, Plot], folder: Path) -> dict[str, PageFigure]:
    """Write each plot to `folder` as PNG, and return the elements that a page shows."""
    elements = {}
    for name, plot in figures.items():
        wide, narrow = plot.render(plots.WIDE), plot.render(plots.NARROW)
        write_bytes(folder / f"{name}.png", plots.png(wide))
        elements[name] = PageFigure(
            plot.caption,
            plots.inline_svg(wide, f"{name}-wide", plot.caption),
            plots.inline_svg(narrow, f"{name}-narrow", plot.caption),
        )
    return elements


def render_page(template: str, **content: Any) -> str:
    """Return the page that a template of folder `templates` makes of `content`, which is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content, theme=THEME)


def provenance(facts: Mapping[str, str], packages: Sequence[str]) -> dict[str, str]:
    """Return where a page comes from: code, the given facts, versions and date.

    Args:
        facts: the data, settings and seeds of the page, by name.
        packages: the packages whose versions are given, in addition to Python.
    """
    return {
        "code": git_state(),
        "DVC experiment": os.environ.get("DVC_EXP_NAME") or "none",
        **facts,
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def git_state() -> str:
    """Return the commit of the current folder, and which files of code or settings differ from it."""
    commit, changed = _commit_and_changes()
    if commit is None:
        return "unknown: not in a git repository with a commit that git may read"
    if changed is None:
        return f"git {commit[:12]}, changes unknown"
    if not changed:
        return f"git {commit[:12]}, clean"
    files = [line.split(maxsplit=1)[1] for line in changed.splitlines()]
    more = f" and {len(files) - MOST_CHANGED_FILES} more" if len(files) > MOST_CHANGED_FILES else ""
    return f"git {commit[:12]}, with uncommitted changes in {', '.join(files[:MOST_CHANGED_FILES])}{more}"


@dataclass(frozen=True)
class Recipe:
    """The commands that make a page again. Not `is_clean`: code or settings differed from the commit, or may have."""

    commands: tuple[str, ...]
    is_clean: bool


def recipe() -> Recipe:
    """Return how the current folder's state is run again."""
    commit, changed = _commit_and_changes()
    experiment = os.environ.get("DVC_EXP_NAME")
    checkout = (f"git checkout {commit[:12]}",) if commit else ()
    applied = (f"dvc exp apply {experiment}",) if experiment else ()
    commands = (*checkout, "make env", "source .venv/bin/activate", *applied, "dvc repro")
    return Recipe(commands, is_clean=changed == "")


def _commit_and_changes() -> tuple[str | None, str | None]:
    return commit_and_changes(*CODE, ":/params.yaml", ":/*.jinja")
