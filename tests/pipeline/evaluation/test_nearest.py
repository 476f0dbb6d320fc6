"""Copies of networks that are trained here on digits, for some seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluation_examples import architecture, make_ghn
from torch import Tensor, nn
from torch.nn import functional as F

from ghn import Architecture
from pipeline.evaluation.initialisations import Initialisation, InitialisationContext, initialised_module
from pipeline.evaluation.nearest import SIMILARITIES, CopyReport, Similarity, Source, SourceIndex, nearest_copy
from pipeline.evaluation.networks import fresh_module
from pipeline.evaluation.scores import score
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images

STEPS, BATCH = 120, 64

NETWORKS = [
    replace(network, C=8, fc_dim=16)
    for network in (
        architecture("conv_3x3", "skip_connect", n_cells=3),
        architecture("sep_conv_3x3", "max_pool_3x3", fc_layers=2),
        architecture("conv_1x1", "cse", stem_type=1),
    )
]


@pytest.fixture(scope="module")
def context() -> InitialisationContext:
    return InitialisationContext(make_ghn(0), image_size=8, classes=10, seed=3)


@pytest.fixture(scope="module")
def sources(images: Images) -> list[Source]:
    return [trained(index, network, images) for index, network in zip((5, 0, 7), NETWORKS, strict=True)]


def made_source(index: int, network: Architecture, module: nn.Module, top1: float = 0.5) -> Source:
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return Source(index, network, lambda: tensors, top1, train_seconds=1.0)


def indexed(*sources: Source) -> SourceIndex:
    return SourceIndex.of(sources, make_ghn(0), 8, 10)


def trained(index: int, network: Architecture, images: Images) -> Source:
    module = fresh_module(network, 8, 10, seed=index)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        x_BCSS, labels_B = training_batch(images, index, step, BATCH, Augmentation())
        optimizer.zero_grad()
        F.cross_entropy(module(x_BCSS), labels_B).backward()
        optimizer.step()
    top1 = accuracy(network, dict(module.named_parameters()), images)
    return made_source(index, network, module, top1)


def accuracy(network: Architecture, tensors: dict[str, Tensor], images: Images) -> float:
    """Return the test accuracy of a network with some tensors, and with random ones where these are missing."""
    context = InitialisationContext(make_ghn(0), image_size=8, classes=10, seed=3)
    module = initialised_module(Initialisation("given", lambda *_: tensors), network, context).eval()
    return score(module, evaluation_batches(images.test, images, BATCH), torch.device("cpu")).top1


@pytest.mark.slow
@pytest.mark.parametrize("by", SIMILARITIES)
@pytest.mark.parametrize("number", range(3))
def test_a_source_that_is_copied_onto_itself_has_its_own_accuracy(
    number: int, by: Similarity, sources: list[Source], context: InitialisationContext, images: Images
) -> None:
    source = sources[number]
    tensors, report = nearest_copy(source.network, indexed(*sources), by, context)
    assert report == CopyReport(
        source=source.index,
        similarity=pytest.approx(1, abs=1e-5),
        share_copied=1.0,
        source_top1=source.top1,
        source_train_seconds=1.0,
    )
    assert all(torch.equal(tensor, source.read()[name]) for name, tensor in tensors.items())
    assert accuracy(source.network, tensors, images) == source.top1 > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 24, 40])
@pytest.mark.parametrize("number", range(3))
def test_a_wider_version_of_a_source_has_almost_its_accuracy(
    number: int, width: int, sources: list[Source], context: InitialisationContext, images: Images
) -> None:
    source = sources[number]
    wide = source.network.with_width(width)
    tensors, report = nearest_copy(wide, indexed(source), "wl", context)
    assert (report["source"], report["share_copied"]) == (source.index, 1.0)
    assert 0.4 < report["similarity"] < 1
    assert accuracy(wide, tensors, images) == pytest.approx(source.top1, abs=0.05)


@pytest.mark.slow
def test_a_network_with_larger_kernels_has_the_accuracy_of_the_source(
    sources: list[Source], context: InitialisationContext, images: Images
) -> None:
    network = replace(architecture("conv_5x5", "skip_connect", n_cells=3), C=8)
    tensors, report = nearest_copy(network, indexed(*sources), "wl", context)
    assert (report["source"], report["share_copied"]) == (sources[0].index, 1.0)
    assert accuracy(network, tensors, images) == pytest.approx(sources[0].top1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("by", SIMILARITIES)
def test_a_network_with_other_operations_is_better_with_a_copy_than_at_random(
    by: Similarity, sources: list[Source], context: InitialisationContext, images: Images
) -> None:
    network = replace(architecture("conv_3x3", "avg_pool_3x3", n_cells=3), C=8)
    tensors, report = nearest_copy(network, indexed(sources[0]), by, context)
    assert report["similarity"] < 1
    assert accuracy(network, tensors, images) > accuracy(network, {}, images) + 0.1


def test_the_most_similar_source_is_copied(context: InitialisationContext) -> None:
    sources = [
        made_source(index, network, fresh_module(network, 8, 10, index)) for index, network in enumerate(NETWORKS)
    ]
    for index, network in enumerate(NETWORKS):
        like_it = replace(network, n_cells=network.n_cells + 1)
        tensors, report = nearest_copy(like_it, indexed(*sources), "wl", context)
        assert report["source"] == index
        assert not any(tensor.requires_grad for tensor in tensors.values())


def test_without_sources_nothing_can_be_copied() -> None:
    with pytest.raises(ValueError, match="no sources"):
        indexed()
