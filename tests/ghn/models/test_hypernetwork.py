from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from examples import CLASSES, CONFIG, architectures, images, one_operation, sample, tiny_ghn
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture, GHNConfig
from ghn.models.node_encoder import NodeEncoder
from ghn.networks.graph import PRIMITIVES, Graph, Node
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.program import Program

VARIANTS = ("ghn2", "ghn1", "mlp")


@given(architectures(), st.sampled_from(VARIANTS), st.sampled_from((8, 28, 64, 224)))
def test_every_parameter_is_predicted_in_its_shape(architecture: Architecture, variant: str, size: int) -> None:
    with torch.no_grad():
        (predicted,) = tiny_ghn(variant).predict_parameters([architecture], image_size=size)
    expected = {p.name: p.shape for p in architecture.program(size, CLASSES).parameters()}
    assert {name: tuple(tensor.shape) for name, tensor in predicted.items()} == expected
    assert all(tensor.isfinite().all() for tensor in predicted.values())


@pytest.mark.parametrize("variant", VARIANTS)
@given(several=st.lists(architectures(), min_size=2, max_size=3))
def test_a_meta_batch_gets_what_each_network_gets_alone(variant: str, several: list[Architecture]) -> None:
    ghn = tiny_ghn(variant, torch.float64)
    with torch.no_grad():
        together = ghn.predict_parameters(several)
        for architecture, predicted in zip(several, together, strict=True):
            (alone,) = ghn.predict_parameters([architecture])
            assert alone.keys() == predicted.keys()
            for name, tensor in alone.items():
                torch.testing.assert_close(predicted[name], tensor)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_weight_that_a_prediction_uses(variant: str) -> None:
    ghn = tiny_ghn(variant)
    several = [one_operation(operation, fc_layers=2) for operation in ("msa", "cse", "sep_conv_5x5")]
    loss = sum(
        architecture.forward(predicted, images(16)).square().sum()
        for architecture, predicted in zip(several, ghn.predict_parameters(several), strict=True)
    )
    loss.backward()
    for name, weight in ghn.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


def test_another_number_of_classes_than_trained_is_predicted() -> None:
    architecture = sample("train", 0)
    for classes in (2, 7):
        (predicted,) = tiny_ghn().predict_parameters([architecture], num_classes=classes)
        assert architecture.forward(predicted, images(16)).shape == (4, classes)


class Recording(Architecture):
    """Remembers for which numbers of classes it was asked for its program."""

    asked: ClassVar[list[int]] = []

    def program(self, image_size: int, num_classes: int) -> Program:
        self.asked.append(num_classes)
        return super().program(image_size, num_classes)


def test_impossible_sizes_are_refused_and_no_networks_have_no_parameters() -> None:
    ghn, network = tiny_ghn(), one_operation("conv_3x3")
    with pytest.raises(ValueError, match="image_size = 0: must be"):
        ghn.predict_parameters([network], image_size=0)
    with pytest.raises(ValueError, match="num_classes = 0: must be"):
        ghn.predict_parameters([network], num_classes=0)
    assert ghn.predict_parameters([]) == []


def test_the_number_of_classes_is_read_off_the_predicted_parameters() -> None:
    several = [Recording(**vars(sample("train", index))) for index in range(8)]
    predictions = tiny_ghn().predict_parameters(several)
    Recording.asked.clear()
    for architecture, predicted in zip(several, predictions, strict=True):
        architecture.forward(predicted, images(16))
    assert Recording.asked == [CLASSES] * 8


def test_the_same_prediction_twice_is_the_same_to_the_last_bit() -> None:
    ghn, several = tiny_ghn(), [sample("test", index) for index in range(3)]
    first, second = ghn.predict_parameters(several), ghn.predict_parameters(several)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_only_ghn2_has_virtual_edges() -> None:
    graph = sample("test", 0).graph(16, CLASSES)
    longest = {variant: tiny_ghn(variant).batch([graph]).distances.max() for variant in VARIANTS}
    assert longest["ghn1"] == longest["mlp"] == 1 < longest["ghn2"] <= 50


def encode(*nodes: Node, classes: int = 10, kernel: int = 11) -> tuple[NodeEncoder, torch.Tensor]:
    torch.manual_seed(0)
    encoder = NodeEncoder(8, kernel, classes)
    return encoder, encoder(GraphBatch.of([Graph(nodes, ())], 1))


def conv(out: int, inputs: int = 1, kh: int = 1, kw: int = 1) -> Node:
    return Node("conv", (out, inputs, kh, kw))


def test_a_nodes_input_is_its_primitive_plus_its_four_sizes() -> None:
    encoder, x = encode(conv(16, 3, 5, 7), Node("sum"))
    channels, spatial = encoder.channels.weight, encoder.spatial.weight
    # The channel vocabulary begins 1, 3, 8, 10 (classes), 16; the spatial one 1, 3, 5, 7; last: no shape.
    sizes = torch.cat([channels[4], channels[1], spatial[2], spatial[3]])
    torch.testing.assert_close(x[0], encoder.primitives.weight[PRIMITIVES.index("conv")] + sizes)
    absent = torch.cat([channels[-1], channels[-1], spatial[-1], spatial[-1]])
    torch.testing.assert_close(x[1], encoder.primitives.weight[PRIMITIVES.index("sum")] + absent)


def test_vocabularies_have_the_published_sizes() -> None:
    small, large = NodeEncoder(8, 11, 10), NodeEncoder(8, 16, 1000)
    assert (small.primitives.num_embeddings, small.channels.num_embeddings, small.spatial.num_embeddings) == (
        15,
        392,
        9,
    )
    assert (large.channels.num_embeddings, large.spatial.num_embeddings) == (392, 11)


@pytest.mark.parametrize(
    ("value", "stands_in"),
    [(2, 3), (4, 8), (7, 8), (9, 8), (12, 10), (13, 10), (14, 16), (20, 16), (72, 64), (4112, 4096), (9000, 8192)],
)
def test_channels_outside_the_vocabulary_take_the_nearest_entry(value: int, stands_in: int) -> None:
    _, x = encode(conv(value, value), conv(stands_in, stands_in), conv(1, 1))
    assert torch.equal(x[0], x[1]) and not torch.equal(x[0], x[2])


@pytest.mark.parametrize(("value", "stands_in"), [(2, 3), (4, 3), (6, 5), (12, 11), (13, 14), (22, 16)])
def test_kernels_outside_the_vocabulary_take_the_nearest_entry(value: int, stands_in: int) -> None:
    _, x = encode(conv(1, 1, value, value), conv(1, 1, stands_in, stands_in), conv(1, 1, 9, 9))
    assert torch.equal(x[0], x[1]) and not torch.equal(x[0], x[2])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("variant", "ghn4"),
        ("hidden", 0),
        ("hidden", 12),
        ("num_classes", 0),
        ("image_size", 0),
        ("kernel", 0),
        ("virtual_edges", 0),
    ],
)
def test_an_impossible_setting_is_refused_with_its_name_and_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} = {value!r}: must be"):
        GHNConfig(**{**CONFIG.to_dict(), field: value})


@pytest.mark.parametrize(
    ("variant", "bounded", "unit"), [("ghn1", False, False), ("mlp", True, True), ("ghn2", True, True)]
)
def test_variants_differ_in_normalisation_and_layer_norm(variant: str, bounded: bool, unit: bool) -> None:
    ghn, architecture = tiny_ghn(variant), sample("test", 0)
    with torch.no_grad():
        ghn.decoder.vectors.classes.bias += 100
        (predicted,) = ghn.predict_parameters([architecture])
        states = ghn.embed(ghn.batch([architecture.graph(16, CLASSES)]))
    assert (list(predicted.values())[-1].max() <= 1) == bounded
    assert torch.allclose(states.std(1, correction=0), torch.ones(len(states)), atol=1e-2) == unit


def test_a_mean_embedding_is_the_mean_of_the_states_of_its_network_alone() -> None:
    ghn, architectures = tiny_ghn("ghn2"), [sample("test", index) for index in range(3)]
    with torch.no_grad():
        together = ghn.mean_embeddings(architectures, 16, CLASSES)
        alone = [ghn.embed(ghn.batch([each.graph(16, CLASSES)])).mean(0) for each in architectures]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)
