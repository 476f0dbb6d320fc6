"""Words for numbers, and listings. Why no library gives them: docs/decisions/0005-formatters-and-plots.md."""

from __future__ import annotations

import math
from collections.abc import Iterable

EN_DASH, MINUS_SIGN = "\N{EN DASH}", "\N{MINUS SIGN}"


def short_count(number: float) -> str:
    """Return a count in three digits: 950, 12.3 k, 1.23 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def count(number: float, noun: str) -> str:
    """Return a count with its noun: 1 noun, 2 nouns."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 2 d 3 h, 1 h 05 min, 4 min 10 s, 12.3 s."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def short_seconds(seconds: float) -> str:
    """Return a time of less than a minute: 0.12 s, 34 ms, 0.5 ms."""
    if seconds < 9.5e-4:
        return f"{1000 * seconds:.1g} ms"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


def mean_and_std(mean: float, std: float, digits: int = 1) -> str:
    """Return a mean with its standard deviation, or alone if that is not a number."""
    text = f"{mean:,.{digits}f}"
    return text if math.isnan(std) else f"{text} ± {std:,.{digits}f}"


def difference(value: float, error: float) -> str:
    """Return a signed difference with its standard error, or alone if that is not a number."""
    text = f"{value:+.1f}".replace("-", MINUS_SIGN)
    return text if math.isnan(error) else f"{text} ± {error:.1f}"


def number_range(low: float, high: float) -> str:
    """Return two counts with a dash between them, or one if they are equal."""
    return f"{low:,.0f}" if low == high else f"{low:,.0f}{EN_DASH}{high:,.0f}"


def listing(words: Iterable[str]) -> str:
    """Return words with commas and an "and" between them: a, b and c."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
