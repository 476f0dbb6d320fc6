"""How much of a trained network survives a copy onto a network that differs a little from it.

    python benchmarks/copies.py [--sources 16] [--epochs 2] [--learning-rate 0.1] [--workers 2]

Trains the first architectures of split train by SGD at the settings of `params.yaml`, copies the parameters of each
onto edited versions of itself (`ghn.similarity.copying`), and measures these on all test images without any training.
Edits: none; another width; one or three primitives of the normal cell replaced; one edge of it from another state; a
cell more or fewer; the other stem. Beside them the nearest of the other sources by the Weisfeiler-Lehman kernel, and
random parameters. The table says how similar source and target are by that kernel, which share of the target's
parameters was copied, and the top-1, mean ± standard error over sources.

The last line is JSON: for each edit `networks`, `similarity`, `share_copied`, `top1`, `top1_error`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from frame import RecordName, finish, introduce
from scratch_project import project_settings, scratch_project
from torch import Tensor, inference_mode

from ghn.deepnets1m.architecture import Architecture
from ghn.deepnets1m.genotype import OPERATIONS
from ghn.networks.network import Network
from ghn.similarity.copying import copy_parameters
from ghn.similarity.weisfeiler_lehman import features, similarities
from pipeline.architectures.store import ArchitectureStore
from pipeline.cluster.ray_cluster import run_tasks
from pipeline.evaluation.networks import Candidate, available_device, fresh_module, seed_of
from pipeline.evaluation.scores import score
from pipeline.evaluation.sgd import SgdRun, classifier, train_by_sgd
from pipeline.images.batches import Augmentation, evaluation_batches
from pipeline.images.dataset import Images
from pipeline.images.load import load_images, open_images
from pipeline.params import Params
from pipeline.stages.sgd import first_candidates

Edit = Callable[[Architecture, np.random.Generator], Architecture]

SOME_OPERATIONS = [name for name in OPERATIONS if name not in ("none", "msa")]
"""What an edit puts in place of another primitive; attention would need a width that is a multiple of 8."""


def with_primitives(count: int) -> Edit:
    """Return the edit that replaces so many primitives of the normal cell, if it has as many."""

    def edit(network: Architecture, rng: np.random.Generator) -> Architecture:
        edges = list(network.genotype.normal)
        for place in rng.permutation(len(edges))[:count]:
            operation, source = edges[place]
            edges[place] = (str(rng.choice([name for name in SOME_OPERATIONS if name != operation])), source)
        return replace(network, genotype=replace(network.genotype, normal=tuple(edges)))

    return edit


def with_another_edge(network: Architecture, rng: np.random.Generator) -> Architecture:
    """Return a version whose normal cell has an edge from another state."""
    edges = list(network.genotype.normal)
    place = int(rng.integers(len(edges)))
    operation, source = edges[place]
    edges[place] = (operation, int(rng.choice([state for state in range(2 + place // 2) if state != source])))
    return replace(network, genotype=replace(network.genotype, normal=tuple(edges)))


EDITS: dict[str, Edit] = {
    "itself": lambda network, rng: network,
    "twice the width": lambda network, rng: replace(network, C=2 * network.C),
    "half the width": lambda network, rng: replace(network, C=network.C // 2),
    "one edge": with_another_edge,
    "one primitive": with_primitives(1),
    "three primitives": with_primitives(3),
    "a cell more": lambda network, rng: replace(network, n_cells=network.n_cells + 1),
    "a cell fewer": lambda network, rng: replace(network, n_cells=max(1, network.n_cells - 1)),
    "the other stem": lambda network, rng: replace(network, stem_type=1 - network.stem_type),
}


def trained_tensors(candidate: Candidate, place: str, params: Params, epochs: int, rate: float) -> dict[str, Tensor]:
    """Train a network on the decoded images at a place, and return its parameters."""
    images, key = open_images(place), seed_of(params.seed, candidate.split, candidate.index)
    module = fresh_module(candidate.network, images.test.side, len(images.classes), key)
    steps = round(epochs * len(images.train) / params.sgd.batch)
    augmentation = Augmentation(params.images.shift, params.images.flip)
    train_by_sgd(module, images, SgdRun(rate, steps, params.sgd.batch, key, augmentation))
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def measured_copies(
    candidate: Candidate, others: Sequence[Candidate], tensors: Sequence[Mapping[str, Tensor]], place: str, batch: int
) -> list[dict[str, Any]]:
    """Return a row for each edit of a source, for its nearest other source, and for random parameters.

    Args:
        others: all sources; those with its index are left out of the search.
        tensors: their parameters.
    """
    images, rng = open_images(place), np.random.default_rng(candidate.index)
    own = tensors[[other.index for other in others].index(candidate.index)]
    source = candidate.network
    assert isinstance(source, Architecture)
    rows = [
        copied(name, edit(source, rng), source, own, images, batch, candidate.index) for name, edit in EDITS.items()
    ]
    candidates = [
        (other.network, found) for other, found in zip(others, tensors, strict=True) if other.index != candidate.index
    ]
    kernel = [similarity_of(source, other, images) for other, _ in candidates]
    nearest, found = candidates[int(np.argmax(kernel))]
    rows.append(copied("nearest other source", source, nearest, found, images, batch, candidate.index))
    rows.append(copied("random parameters", source, source, {}, images, batch, candidate.index))
    return rows


def copied(
    name: str,
    target: Network,
    source: Network,
    tensors: Mapping[str, Tensor],
    images: Images,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """Return how accurate a target is with the parameters of a source; without any, all are random."""
    size, classes = images.test.side, len(images.classes)
    module, share = fresh_module(target, size, classes, seed), 0.0
    if tensors:
        copy = copy_parameters(target.program(size, classes), source.program(size, classes), tensors)
        module.load_state_dict(copy.tensors, strict=False)
        share = copy.share
    with inference_mode():
        top1 = score(classifier(module), evaluation_batches(images.test, images, batch), available_device()).top1
    return {
        "edit": name,
        "similarity": similarity_of(target, source, images) if tensors else 0.0,
        "share_copied": share,
        "top1": top1,
    }


def similarity_of(network: Network, other: Network, images: Images) -> float:
    """Return the Weisfeiler-Lehman similarity of two networks, 0 to 1."""
    size, classes = images.test.side, len(images.classes)
    one, two = (features([each.node_table(size, classes)]) for each in (network, other))
    return float(similarities(one, two)[0, 0])


def main(
    sources: Annotated[int, typer.Option(min=2, help="Architectures of split train.")] = 16,
    epochs: Annotated[int, typer.Option(min=1, help="Of their training.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Of their training.")] = 0.1,
    workers: Annotated[int, typer.Option(min=1, help="Processes of one thread.")] = 2,
    record: RecordName = None,
) -> None:
    """Measure copies onto edited networks."""
    settings = project_settings()
    settings["generate"] |= dict.fromkeys(("val", "test", "wide", "deep", "dense", "bn_free"), 1) | {"train": sources}
    settings["train"]["validation"]["architectures"] = 1
    settings["sgd"] |= {"architectures": {}, "sources": 1}
    for stage in ("finetune", "adapt", "condition"):
        settings[stage]["architectures"] = 1
    params = Params.model_validate(settings)
    with scratch_project(settings, cpus=workers):
        images = load_images(params.dataset, params.images, params.storage)
        candidates = first_candidates(ArchitectureStore(params.storage), "train", sources, params)
        arguments = [(candidate, images.place, params, epochs, learning_rate) for candidate in candidates]
        found = dict(run_tasks(trained_tensors, arguments, description="train", unit="network"))
        tensors = [found[position] for position in range(sources)]
        measured = [(candidate, candidates, tensors, images.place, params.evaluate.batch) for candidate in candidates]
        rows = dict(run_tasks(measured_copies, measured, description="copy", unit="network"))
    introduce(f"{sources} sources, {epochs} epochs at rate {learning_rate:g}", f"{params.dataset}")
    table = pd.DataFrame([row for position in range(sources) for row in rows[position]])
    result = {}
    for edit, own in table.groupby("edit", sort=False):
        mean, error = 100 * own["top1"].mean(), 100 * own["top1"].sem()
        figures = {name: round(float(own[name].mean()), 3) for name in ("similarity", "share_copied")}
        print(f"{edit}: similarity {figures['similarity']:.2f}, {figures['share_copied']:.0%} copied, ", end="")
        print(f"top-1 {mean:.1f} ± {error:.1f} %")
        result[str(edit)] = {"networks": len(own), **figures, "top1": round(mean, 2), "top1_error": round(error, 2)}
    finish(result, record)


if __name__ == "__main__":
    typer.run(main)
