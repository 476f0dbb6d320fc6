"""The Dirac parametrisation: what passes through networks before anything is learned."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
import torch
from examples import CLASSES, CONFIG, sample
from hypothesis import given
from hypothesis import strategies as st

from ghn import GHN
from ghn.deepnets1m.architecture import Architecture
from ghn.models.dirac import dirac_part, has_dirac_part, signal_path
from ghn.networks.operations import Parameter

IMAGE_SIZE = CONFIG.image_size

sizes = st.integers(1, 40).filter(lambda size: size != 3)


def fresh(dirac: bool) -> GHN:
    torch.manual_seed(0)
    return GHN(replace(CONFIG, dirac=dirac)).eval()


@torch.no_grad()
def deviation_of_logits(ghn: GHN, architecture: Architecture) -> float:
    """Return the deviation of the logits across images, the mean over classes."""
    images = torch.randn(32, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    (parameters,) = ghn.predict_parameters([architecture])
    return float(architecture.forward(parameters, images).std(0).mean())


def test_images_survive_the_first_predictions_of_norm_free_networks() -> None:
    networks = [sample("bn_free", index) for index in range(12)]
    published, ours = ([deviation_of_logits(fresh(dirac), network) for network in networks] for dirac in (False, True))
    assert median(published) < 1e-8
    assert min(ours) > 1e-5 and median(ours) > 1e-3 and max(ours) < 30


@given(sizes, sizes, st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (2, 2)]))
def test_a_dirac_part_averages_in_channels_of_equal_number(out: int, inputs: int, kernel: tuple[int, int]) -> None:
    part = dirac_part((out, inputs, *kernel))
    centre = part[:, :, kernel[0] // 2, kernel[1] // 2]
    torch.testing.assert_close(centre.sum(1), torch.ones(out))
    assert part.count_nonzero() == centre.count_nonzero()
    features = min(out, inputs)
    read = centre.nonzero()
    assert (read[:, 0] % features == read[:, 1] % features).all()
    if out == inputs:
        assert torch.equal(centre, torch.eye(out))


def test_a_convolution_with_its_dirac_part_passes_features_on() -> None:
    x = torch.randn(2, 8, 9, 9)
    for kernel in (1, 3, 5):
        weight = dirac_part((8, 8, kernel, kernel))
        assert torch.equal(torch.conv2d(x, weight, padding=kernel // 2), x)
    assert torch.equal(torch.conv2d(x, dirac_part((8, 1, 3, 3)), padding=2, dilation=2, groups=8), x)


def test_a_stem_begins_with_filters_in_pairs_of_opposite_sign() -> None:
    filters = dirac_part((16, 3, 3, 3))
    assert torch.equal(filters[0::2], -filters[1::2])
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(16))
    assert torch.linalg.matrix_rank(filters[:, 0].flatten(1)) == 8


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (Parameter("conv.weight", (8, 4, 3, 3)), True),
        (Parameter("transposed.weight", (4, 8, 3, 3), axis_order="transposed"), True),
        (Parameter("linear.weight", (8, 4)), False),
        (Parameter("volume.weight", (8, 4, 3, 3, 3), axis_order="volume"), False),
        (Parameter("positions", (1, 8, 3, 3), "encoding"), False),
    ],
)
def test_only_convolutions_with_two_kernel_axes_have_a_dirac_part(parameter: Parameter, expected: bool) -> None:
    assert has_dirac_part(parameter) is expected


def test_gains_are_one_where_norms_follow_and_make_up_for_sums_elsewhere() -> None:
    ghn = fresh(dirac=True)
    with_norm = next(
        a
        for i in range(20)
        if (a := sample("train", i)).norm
        and not {"msa", "cse"} & {name for name, _ in (*a.genotype.normal, *a.genotype.reduce)}
    )
    batch = ghn.batch([with_norm.graph(IMAGE_SIZE, CLASSES)])
    gains = signal_path(batch).gains
    before_norms = {
        int(u)
        for u, v, d in zip(batch.sources, batch.targets, batch.distances, strict=True)
        if d == 1 and batch.nodes[v].primitive == "bn"
    }
    assert before_norms and all(gains[node] == 1 for node in before_norms if batch.nodes[node].primitive == "conv")
    norm_free = ghn.batch([sample("bn_free", 0).graph(IMAGE_SIZE, CLASSES)])
    assert signal_path(norm_free).gains.min() < 1


def test_gains_of_several_graphs_are_those_of_each() -> None:
    ghn = fresh(dirac=True)
    networks = [sample("bn_free", 0), sample("train", 1)]
    together = ghn.predict_parameters(networks)
    for network, parameters in zip(networks, together, strict=True):
        (alone,) = ghn.predict_parameters([network])
        for name, tensor in parameters.items():
            torch.testing.assert_close(tensor, alone[name])


def test_rows_without_norm_are_standardised_and_others_are_not() -> None:
    ghn = fresh(dirac=True)
    with torch.no_grad():
        for weight in ghn.decoder.weights.parameters():
            weight.mul_(2)
    (parameters,) = ghn.predict_parameters([architecture := sample("bn_free", 0)])
    convolutions = [
        parameters[p.name]
        for operation in architecture.program(IMAGE_SIZE, CLASSES).operations
        if operation.kind == "conv"
        for p in operation.parameters
        if p.shape[1] > 3
    ]
    assert convolutions
    for weight in convolutions:
        rows = weight.flatten(1)
        torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows)), atol=1e-6, rtol=0)
        torch.testing.assert_close(rows.norm(dim=1), rows.norm(dim=1)[:1].expand(len(rows)))
