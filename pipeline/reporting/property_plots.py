"""Figures about embeddings: how well they predict properties, and what they look like in two dimensions."""

from __future__ import annotations

from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.comparison_tables import FEATURE_LABELS, property_label
from pipeline.reporting.numbers import EN_DASH
from pipeline.reporting.plots import REFERENCE_LINE, STYLE, WIDE, add_legend, dot_handle
from pipeline.reporting.theme import ACCENT, COMPARED, INK, SERIES_COLORS

LANE = 0.22  # between the features of one property, in rows
ACCURACY_BINS = 4
BIN_COLORS = [
    to_hex(color)
    for color in LinearSegmentedColormap.from_list("accuracy", [SERIES_COLORS[2], COMPARED, ACCENT])(
        np.linspace(0, 1, ACCURACY_BINS)
    )
]
"""From the lowest accuracies to the highest, all seen on light and on dark surfaces."""


@matplotlib.rc_context(STYLE)
def property_taus(scores: pd.DataFrame, width: float = WIDE) -> Figure:
    """Plot Kendall's τ between predicted and true properties with its interval, a row a property, a colour a feature.

    Args:
        scores: a row for each property and kind of features, each with τ: target, features, tau, tau_low, tau_high.
        width: inches.
    """
    targets, features = (list(dict.fromkeys(scores[name])) for name in ("target", "features"))
    figure = Figure(figsize=(width, 0.9 + 0.5 * len(targets)), layout="constrained")
    axes = figure.subplots()
    for lane, (name, color) in enumerate(zip(features, SERIES_COLORS, strict=False)):
        own = scores[scores["features"] == name]
        rows = own["target"].map(targets.index) + LANE * (lane - (len(features) - 1) / 2)
        errors = [own["tau"] - own["tau_low"], own["tau_high"] - own["tau"]]
        axes.errorbar(own["tau"], rows, xerr=errors, fmt="o", color=color, markersize=4.5, elinewidth=1.2)
    axes.axvline(0, zorder=1.5, **REFERENCE_LINE)
    axes.set_yticks(range(len(targets)), map(property_label, targets))
    axes.tick_params(axis="y", labelcolor=INK, pad=6)
    axes.set_ylim(len(targets) - 0.5, -0.5)
    axes.set_xlim(-1.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Kendall's τ")
    add_legend(figure, [dot_handle(c, FEATURE_LABELS.get(f, f)) for f, c in zip(features, SERIES_COLORS, strict=False)])
    return figure


@matplotlib.rc_context(STYLE)
def embedding_map(networks: pd.DataFrame, width: float = WIDE) -> Figure:
    """Plot the first two principal components of embeddings; a colour is a quarter of the networks, by accuracy.

    Args:
        networks: a row for each network: component_0, component_1, … and top1.
        width: inches.
    """
    components = networks.filter(regex=r"^component_\d+$")
    shares = components.var() / components.var().sum()
    edges = np.quantile(networks["top1"], np.linspace(0, 1, ACCURACY_BINS + 1))
    bins = np.clip(np.searchsorted(edges, networks["top1"], side="right") - 1, 0, ACCURACY_BINS - 1)
    figure = Figure(figsize=(width, 0.62 * width if width > 5 else 0.95 * width), layout="constrained")
    axes = figure.subplots()
    handles = []
    for number, (color, (low, high)) in enumerate(zip(BIN_COLORS, pairwise(edges), strict=True)):
        own = components[bins == number]
        axes.scatter(own["component_0"], own["component_1"], s=16, color=color, alpha=0.8, linewidth=0)
        handles.append(dot_handle(color, f"{100 * low:.0f}{EN_DASH}{100 * high:.0f}%"))
    for axis, name in ((axes.xaxis, "component_0"), (axes.yaxis, "component_1")):
        axis.set_label_text(f"principal component {int(name[-1]) + 1}, {shares[name]:.0%} of the variance")
        axis.set_ticklabels([])
    add_legend(figure, handles)
    return figure
