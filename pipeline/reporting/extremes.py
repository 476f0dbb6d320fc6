"""The best and the worst architectures, for pictures of them, each with its accuracy and its traits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from pipeline.console import percent
from pipeline.evaluation.initialisations import HEADLINE
from pipeline.evaluation.traits import TRAIT_LABELS
from pipeline.reporting.numbers import listing
from pipeline.reporting.page import LARGEST_GRAPH, GraphGallery, GraphPicture

RENDERED = 2
"""Architectures at each end that are rendered."""

BEST, WORST = "The best", "The worst"


class RankedPicture(NamedTuple):
    """A rendered architecture of the best or the worst: its place among all evaluated ones and its traits, in words."""

    end: str
    name: str
    place: str
    traits: str
    picture: GraphPicture


class ExtremesGallery(NamedTuple):
    """The pictures, best first, and the colour of each primitive that occurs in one of them."""

    pictures: list[RankedPicture]
    colors: dict[str, str]


def ranked_architectures(architectures: pd.DataFrame) -> pd.DataFrame:
    """Return the architectures of all splits with predicted parameters, best first, with their `rank` from 1 on."""
    own = architectures[architectures["initialisation"] == HEADLINE]
    ranked = own.sort_values("top1", ascending=False, kind="stable", ignore_index=True)
    return ranked.assign(rank=range(1, len(ranked) + 1))


def extreme_architectures(architectures: pd.DataFrame) -> pd.DataFrame:
    """Return the best and the worst architectures whose graphs are small enough to render, best first.

    Args:
        architectures: a row for each (split, index, initialisation).
    """
    small = ranked_architectures(architectures).query(f"nodes <= {LARGEST_GRAPH}")
    number = min(RENDERED, len(small) // 2)
    return pd.concat([small.head(number), small.tail(number)]).assign(end=[BEST] * number + [WORST] * number)


def rank_pictures(rows: pd.DataFrame, gallery: GraphGallery, networks: pd.DataFrame) -> ExtremesGallery:
    """Return pictures of architectures with their places and traits.

    Args:
        rows: those of `extreme_architectures`.
        gallery: a picture of each, by `<split>/<index>`.
        networks: a row for each ranked (split, index), with a column for each trait.
    """
    pictures = {picture.name: picture for picture in gallery.pictures}
    traits = networks.set_index(["split", "index"])
    ranked = [
        RankedPicture(
            end=row["end"],
            name=", ".join(filter(None, (row["name"], f"{row['split']}/{row['index']}"))),
            place=f"{percent(row['top1'])}%, {row['rank']:,} of {len(networks):,}",
            traits=_traits_in_words([name for name in TRAIT_LABELS if traits.at[(row["split"], row["index"]), name]]),
            picture=pictures[f"{row['split']}/{row['index']}"],
        )
        for row in rows.to_dict("records")
    ]
    return ExtremesGallery(ranked, gallery.colors)


def _traits_in_words(names: Sequence[str]) -> str:
    return listing(TRAIT_LABELS[name] for name in names) if names else "none of the traits"
