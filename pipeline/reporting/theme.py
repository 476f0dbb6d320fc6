"""Colours of figures and pages, for light and for dark surfaces.

A figure uses the light colours. In a page, its SVG takes the CSS variable of each instead, which the page defines for
light and for dark surfaces (templates/page.html.jinja).
"""

from __future__ import annotations

from typing import NamedTuple


class ThemeColor(NamedTuple):
    """A colour of figures and pages: its CSS variable, without `--`, and its values."""

    variable: str
    light: str
    dark: str


THEME = (
    ThemeColor("ink", "#1d2126", "#e5e8ec"),
    ThemeColor("muted", "#68707b", "#9aa3ae"),
    ThemeColor("line", "#dfe3e8", "#2d333b"),
    ThemeColor("surface", "#fefefe", "#14171b"),
    ThemeColor("accent", "#1f64ae", "#6cabf0"),
    ThemeColor("compared", "#a1978b", "#968d82"),
    ThemeColor("orange", "#c8560a", "#f29450"),
    ThemeColor("green", "#2c8a57", "#62c48c"),
    ThemeColor("violet", "#7b45b8", "#b896f2"),
    ThemeColor("pink", "#d0508f", "#f58cbb"),
    ThemeColor("teal", "#12868f", "#57c6cf"),
    ThemeColor("olive", "#857c10", "#cdc35c"),
)

INK, MUTED, LINE, SURFACE, ACCENT, COMPARED = (color.light for color in THEME[:6])

SERIES_COLORS = tuple(color.light for color in THEME[4:])
"""Colours of what a figure compares: first its subject, then what the subject is compared with, then the others."""

CSS_VARIABLES = {color.light: color.variable for color in THEME}
