"""Nearest copies: the trained parameters of the most similar network, brought to the shapes of another one.

The baseline that Knyazev et al. (NeurIPS 2021) left open: networks of split train are trained by SGD, and each network
that is evaluated gets the parameters of the most similar one of them (`ghn.similarity.copying`).

Dimensions: S sources, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from ghn.similarity import cosine
from ghn.similarity.copying import copy_parameters
from ghn.similarity.weisfeiler_lehman import Features, features, similarities
from pipeline.evaluation.embeddings import embed
from pipeline.evaluation.initialisations import InitialisationContext

Similarity = Literal["wl", "embedding"]
"""How networks are compared: by the Weisfeiler-Lehman kernel of their graphs, or by the cosine of their embeddings."""

SIMILARITIES: tuple[Similarity, ...] = ("wl", "embedding")
"""All ways to compare networks, in the order of tables and legends."""


@dataclass(frozen=True, eq=False)
class Source:
    """A trained network of split train, at the evaluation's width.

    Attributes:
        index: its position in the split.
        network: the network.
        read: returns its parameters, by name.
        top1: its own test accuracy.
        train_seconds: the time of its training.
    """

    index: int
    network: Network
    read: Callable[[], Mapping[str, Tensor]]
    top1: float
    train_seconds: float


@dataclass(frozen=True, eq=False)
class SourceIndex:
    """Sources with what they are compared by: the features of their graphs, and their embeddings (S, H)."""

    sources: tuple[Source, ...]
    features: Features
    embeddings_SH: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[Source], ghn: Hypernetwork, image_size: int, classes: int) -> SourceIndex:
        """Return the index of some sources.

        Raises:
            ValueError: there are none.
        """
        if not sources:
            raise ValueError("no sources to copy from: must be at least one trained network")
        networks = [source.network for source in sources]
        tables = [network.node_table(image_size, classes) for network in networks]
        return cls(tuple(sources), features(tables), embed(networks, ghn, image_size, classes))

    def nearest(self, network: Network, by: Similarity, context: InitialisationContext) -> tuple[Source, float]:
        """Return the source that is most similar to a network, and how similar it is; the first of equal ones."""
        size, classes = context.image_size, context.classes
        if by == "wl":
            similarity_S = similarities(features([network.node_table(size, classes)]), self.features)[0]
            nearest = int(np.argmax(similarity_S))
            return self.sources[nearest], float(similarity_S[nearest])
        cosines, places = cosine.nearest(embed([network], context.ghn, size, classes), self.embeddings_SH)
        return self.sources[int(places[0, 0])], float(cosines[0, 0])


class CopyReport(TypedDict):
    """What a copy was made from, as JSON.

    Attributes:
        source: the source's index in split train.
        similarity: how similar source and target are.
        share_copied: the share of the target's parameters that were copied, 0 to 1.
        source_top1: the source's own test accuracy.
        source_train_seconds: the time of its training.
    """

    source: int
    similarity: float
    share_copied: float
    source_top1: float
    source_train_seconds: float


def nearest_copy(
    network: Network, index: SourceIndex, by: Similarity, context: InitialisationContext
) -> tuple[dict[str, Tensor], CopyReport]:
    """Return the parameters that a network gets from the most similar source, and what was copied.

    Parameters that correspond to none of the source's are missing.
    """
    source, similarity = index.nearest(network, by, context)
    size, classes = context.image_size, context.classes
    copy = copy_parameters(network.program(size, classes), source.network.program(size, classes), source.read())
    return copy.tensors, CopyReport(
        source=source.index,
        similarity=similarity,
        share_copied=copy.share,
        source_top1=source.top1,
        source_train_seconds=source.train_seconds,
    )
