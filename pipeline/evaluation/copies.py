"""Measuring nearest copies in tasks on the cluster, and the trained networks that they are made of.

A task gets a list of the sources, and what they are compared by. It reads the parameters of those that it needs from
the storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import ray
from torch import Tensor

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.network import Network
from pipeline.architectures.store import ArchitectureStore
from pipeline.errors import UserError
from pipeline.evaluation.initialisations import Initialisation, InitialisationContext
from pipeline.evaluation.measurement import Measurement, measure, measure_in_groups
from pipeline.evaluation.nearest import SIMILARITIES, CopyReport, Similarity, Source, SourceIndex, nearest_copy
from pipeline.evaluation.networks import Candidate, candidates_of
from pipeline.evaluation.stored_sources import AGAIN, StoredSource, read_tensors
from pipeline.evaluation.trained_networks import SOURCE_SPLIT
from pipeline.images.dataset import Images
from pipeline.params import EvaluateSettings
from pipeline.results import SOURCES

COPIES: dict[str, Similarity] = {f"copy_{by}": by for by in SIMILARITIES}
"""The names that copies have among the initialisations, and how the source of each is found."""

SOURCES_IN_MEMORY = 8
"""Sources whose parameters a process keeps, because candidates of a task often have the same one."""


class CopyMeasurement(Measurement, CopyReport):
    """A copy onto one network, as JSON: a row of `pipeline.evaluation.tables.CopyScores`."""


def require_sources(stored: Sequence[StoredSource], store: ArchitectureStore, images: Images) -> None:
    """Check that there are sources, which are stored architectures trained on these images.

    Raises:
        UserError: it is not so.
    """
    if not stored:
        raise UserError(
            f"{SOURCES} names no source to copy from: all {SOURCE_SPLIT} architectures of stage sgd have diverged\n"
            "raise sgd.sources, or lower sgd.learning_rates"
        )
    for source in stored:
        if source.images_hash != images.settings_hash:
            raise UserError(
                f"{SOURCES} names networks that were trained on other images than dataset = {images.name} at "
                f"images.size = {images.test.side}\n`dvc repro sgd` trains them on these"
            )
        is_stored = source.index < len(store[SOURCE_SPLIT])
        if not is_stored or store.read(SOURCE_SPLIT, source.index).network_hash != source.network_hash:
            raise UserError(
                f"architecture {source.index} of split {SOURCE_SPLIT} is not the one that {SOURCES} names\n"
                "`dvc repro sgd` trains the stored ones"
            )


def sources_of(
    stored: Sequence[StoredSource],
    store: ArchitectureStore,
    settings: EvaluateSettings,
    images: Images,
    storage: str,
) -> list[Source]:
    """Return stored sources at the evaluation's width, with functions that read their parameters.

    Args:
        storage: the place of the storage itself, the same in all processes.
    """
    size, classes = images.test.side, len(images.classes)
    networks = [store.read(SOURCE_SPLIT, source.index) for source in stored]
    return [
        Source(
            index=source.index,
            network=candidate.network,
            read=partial(tensors_of_source, source, candidate.network, size, classes, storage),
            top1=source.top1,
            train_seconds=source.train_seconds,
        )
        for source, candidate in zip(stored, candidates_of(SOURCE_SPLIT, networks, settings, size), strict=True)
    ]


@lru_cache(maxsize=SOURCES_IN_MEMORY)
def tensors_of_source(
    source: StoredSource, network: Network, image_size: int, classes: int, storage: str
) -> Mapping[str, Tensor]:
    """Return the parameters of a source, by name.

    Raises:
        UserError: their file is missing or damaged, or they are those of another network.
    """
    tensors = read_tensors(source, storage)
    shapes = {parameter.name: parameter.shape for parameter in network.program(image_size, classes).parameters()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise UserError(
            f"{source.file}: not the parameters of architecture {source.index} of split {SOURCE_SPLIT} at "
            f"evaluate.width and images.size\n{AGAIN}"
        )
    return tensors


def measure_copies(
    candidates: Sequence[Candidate],
    sources: Sequence[Source],
    ghn: Hypernetwork,
    images: Images,
    settings: EvaluateSettings,
    seed: int,
    folder: str,
) -> list[CopyMeasurement]:
    """Return the measurements of each candidate in each of `COPIES`, in the order of the candidates.

    See `measure_in_groups`.

    Args:
        images, settings, seed: as in `measure`.
        folder: where finished tasks keep their measurements.
    """
    size, classes = images.test.side, len(images.classes)
    index = SourceIndex.of(sources, ghn.cpu(), size, classes)
    shared = (ray.put(index), ray.put(ghn), ray.put(images), settings, seed)
    return measure_in_groups(measure_group_of_copies, candidates, shared, size, classes, folder, description="copies")


def measure_group_of_copies(
    candidates: Sequence[Candidate],
    index: SourceIndex,
    ghn: Hypernetwork,
    images: Images,
    settings: EvaluateSettings,
    seed: int,
) -> list[CopyMeasurement]:
    """Return the measurements of several candidates, one candidate after the other."""
    return [
        row for candidate in candidates for row in measure_copies_onto(candidate, index, ghn, images, settings, seed)
    ]


def measure_copies_onto(
    candidate: Candidate,
    index: SourceIndex,
    ghn: Hypernetwork,
    images: Images,
    settings: EvaluateSettings,
    seed: int,
) -> list[CopyMeasurement]:
    """Return a measurement of a candidate in each of `COPIES`.

    What is not copied has the values of initialisation `random` of stage evaluate. The search for the source and the
    reading of its parameters are part of the time of initialising.
    """
    reports: dict[str, CopyReport] = {}

    def copied_tensors(name: str, network: Network, context: InitialisationContext) -> Mapping[str, Tensor]:
        tensors, reports[name] = nearest_copy(network, index, COPIES[name], context)
        return tensors

    initialisations = {name: Initialisation(name, partial(copied_tensors, name)) for name in COPIES}
    rows = measure(candidate, initialisations, ghn, images, settings, seed)
    return [CopyMeasurement(**row, **reports[row["initialisation"]]) for row in rows]
