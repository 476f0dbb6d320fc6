"""Files and page elements of rendered graphs. In an SVG, text is text, and a box shows its parameters as a tooltip."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pipeline.reporting import plots
from pipeline.reporting.plots import MUTED, STYLE

PICTURE_SUFFIXES = (".svg", ".png", ".pdf")
"""Formats of a saved picture, by the end of the file's name."""


def save(figure: Figure, file: Path) -> None:
    """Write a figure of `render_graph` to a file. The same graph gives the same bytes.

    Raises:
        ValueError: the file's name does not end in one of `PICTURE_SUFFIXES`.
    """
    kind = file.suffix.lower()
    if kind not in PICTURE_SUFFIXES:
        raise ValueError(f"{file.name} is not the name of a picture: must end in {', '.join(PICTURE_SUFFIXES)}")
    if kind == ".svg":
        file.write_text(svg(figure), encoding="utf-8")
        return
    date = "Software" if kind == ".png" else "CreationDate"  # the field that would differ between runs
    figure.savefig(file, dpi=200, metadata={date: None})


def svg(figure: Figure) -> str:
    """Return a whole SVG file, in which each node has a tooltip."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "graph"}):  # the same identifiers in every run
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date")))
    return _with_tooltips(figure, buffer.getvalue())


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return an `<svg>` element for a page, in which each node has a tooltip (see `plots.inline_svg`).

    Boxes keep their colours and the colour of their text in dark pages.
    """
    return _with_tooltips(figure, plots.inline_svg(figure, name, description, {MUTED: "muted"}))


def _with_tooltips(figure: Figure, text: str) -> str:
    tooltips = {patch.get_gid(): str(patch.get_label()) for axes in figure.axes for patch in axes.patches}

    def with_tooltip(found: re.Match[str]) -> str:
        tooltip = tooltips.get(found[1], "")
        return f"{found[0]}<title>{escape(tooltip, quote=False)}</title>" if tooltip else found[0]

    return re.sub(r'<g id="(?:[^"]+-)?(node-\d+)">', with_tooltip, text)
