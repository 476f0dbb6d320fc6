"""What the pages share: tables, figures for two widths, how a template is filled, and where a page comes from."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from pipeline.reporting import plots
from pipeline.reporting.plots import short_count
from pipeline.storage.files import write_bytes
from pipeline.workspace import CODE, git


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `words` columns are left-aligned, the others hold numbers."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    words: int = 1

    def markdown(self) -> str:
        rules = tuple(":--" if column < self.words else "--:" for column in range(len(self.columns)))
        lines = (self.columns, rules, *self.rows)
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


@dataclass(frozen=True)
class Plot:
    """A figure for any width (inches), and the sentence below it."""

    caption: str
    draw: Callable[[float], Figure]


def write_figures(figures: Mapping[str, Plot], folder: Path) -> dict[str, dict[str, str]]:
    """Writes each plot to `folder` as PNG; returns what a page shows of it: caption, wide and narrow `<svg>`."""
    shown = {}
    for name, plot in figures.items():
        wide, narrow = plot.draw(plots.WIDE), plot.draw(plots.NARROW)
        write_bytes(folder / f"{name}.png", plots.png(wide))
        shown[name] = {
            "caption": plot.caption,
            "wide": plots.inline_svg(wide, f"{name}-wide", plot.caption),
            "narrow": plots.inline_svg(narrow, f"{name}-narrow", plot.caption),
        }
    return shown


def render(template: str, **content: Any) -> str:
    """The page that a template of this folder makes of `content`, which is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def count(number: float, noun: str) -> str:
    """A count with its noun: 1 noun, 2 nouns."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def file_size(size: float) -> str:
    """A number of bytes in three digits: 950 B, 12.3 kB, 1.23 MB."""
    text = short_count(size)
    return f"{text}B" if " " in text else f"{text} B"


def git_state() -> str:
    """The commit of the current folder and whether code or settings differ from it."""
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return "not in a git repository with a commit"
    changed = git("status", "--porcelain", "--", *CODE, ":/params.yaml", ":/*.jinja")
    if not changed:
        return f"git {commit[:12]}, clean"
    files = [line.split(maxsplit=1)[1] for line in changed.splitlines()]
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"git {commit[:12]}, with uncommitted changes in {', '.join(files[:3])}{more}"


def versions(*packages: str) -> str:
    """The versions of Python and of `packages`, in one line."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])
