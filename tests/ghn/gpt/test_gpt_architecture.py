from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ghn import GHN, GHNConfig, find_network, load, network_from_dict
from ghn.gpt.architecture import ACTIVATIONS, POSITIONS, GptArchitecture, TransformerBlock
from ghn.networks.functional import rotated, run_program
from ghn.networks.operations import Parameter
from ghn.networks.parameter_axes import arrange, positions_shape
from ghn.networks.running_statistics import estimate_running_statistics

LENGTH, VOCABULARY = 12, 20

BLOCKS = st.lists(st.builds(TransformerBlock, st.sampled_from([1, 2, 4]), st.integers(1, 4)), min_size=1, max_size=3)
ARCHITECTURES = st.builds(
    GptArchitecture,
    BLOCKS.map(tuple),
    st.sampled_from([8, 16, 24]),
    st.sampled_from(POSITIONS),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
    st.booleans(),
)


def texts(count: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(0))


class ReferenceBlock(nn.Module):
    """A block written down by itself, with PyTorch's own attention."""

    def __init__(self, width: int, block: TransformerBlock, architecture: GptArchitecture):
        super().__init__()
        self.architecture, self.heads = architecture, block.heads
        self.norm1 = nn.LayerNorm(width)
        if not architecture.parallel:
            self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, block.mlp_ratio * width)
        self.fc2 = nn.Linear(block.mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.out(self.attention(self.norm1(x)))
        if self.architecture.parallel:
            return x + attended + self.mlp(self.norm1(x))
        x = x + attended
        return x + self.mlp(self.norm2(x))

    def mlp(self, x: Tensor) -> Tensor:
        activation = {"gelu": F.gelu, "relu": F.relu}[self.architecture.activation]
        return self.fc2(activation(self.fc1(x)))

    def attention(self, x: Tensor) -> Tensor:
        _, length, width = x.shape
        heads = []
        for query, key, value in zip(*(part.chunk(self.heads, -1) for part in self.qkv(x).chunk(3, -1)), strict=True):
            if self.architecture.positions == "rotary":
                query, key = self.rotated(query), self.rotated(key)
            scores = query @ key.transpose(1, 2) / math.sqrt(width / self.heads)
            later = torch.ones(length, length).triu(1).bool()
            heads.append(scores.masked_fill(later, -math.inf).softmax(-1) @ value)
        return torch.cat(heads, -1)

    def rotated(self, x: Tensor) -> Tensor:
        """Rotate pairs of channels as complex numbers."""
        pairs = torch.complex(*x.double().chunk(2, -1))
        count = pairs.shape[-1]
        angles = torch.arange(x.shape[1])[:, None] * 10_000.0 ** (-torch.arange(count) / count)
        turned = pairs * torch.polar(torch.ones_like(angles, dtype=torch.double), angles.double())
        return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


class Reference(nn.Module):
    def __init__(self, architecture: GptArchitecture):
        super().__init__()
        width = architecture.C
        self.embedding = nn.Embedding(VOCABULARY, width)
        if architecture.positions == "learned":
            self.positions = nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(ReferenceBlock(width, block, architecture) for block in architecture.blocks)
        self.norm = nn.LayerNorm(width)
        if not architecture.tied:
            self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if hasattr(self, "positions"):
            x = x + self.positions.weight
        for block in self.blocks:
            x = block(x)
        head = self.head if hasattr(self, "head") else self.embedding
        return F.linear(self.norm(x), head.weight)


@settings(max_examples=25)
@given(ARCHITECTURES)
def test_module_and_forward_pass_are_those_of_a_network_written_down_by_itself(architecture: GptArchitecture) -> None:
    reference = Reference(architecture)
    state = reference.state_dict()
    module = architecture.module(LENGTH, VOCABULARY)
    module.load_state_dict(state)
    expected = reference(texts())
    torch.testing.assert_close(module(texts()), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(architecture.forward(state, texts()), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=15)
@given(ARCHITECTURES, st.integers(1, LENGTH - 1))
def test_no_token_sees_a_later_one(architecture: GptArchitecture, position: int) -> None:
    module = architecture.module(LENGTH, VOCABULARY)
    before = texts()
    after = before.clone()
    after[:, position:] = (after[:, position:] + 1) % VOCABULARY
    torch.testing.assert_close(module(before)[:, :position], module(after)[:, :position])
    assert not torch.allclose(module(before)[:, position:], module(after)[:, position:])


def test_rotary_attention_depends_on_distances_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, LENGTH, 8)
    scores = (rotated(query) @ rotated(key).transpose(-1, -2))[0, 0]
    for distance in range(LENGTH):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(scores[5, 0], scores[0, 0])


@settings(max_examples=25)
@given(ARCHITECTURES)
def test_all_views_agree_on_the_parameters(architecture: GptArchitecture) -> None:
    program = architecture.program(LENGTH, VOCABULARY)
    module = architecture.module(LENGTH, VOCABULARY)
    named = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    assert {p.name: p.shape for p in program.parameters()} == named
    assert sorted(p.name for p in program.graph.parameters) == sorted(named), "each is on one node"
    assert program.num_parameters == sum(tensor.numel() for tensor in module.parameters())
    assert ("head.weight" in named) != architecture.tied


@settings(max_examples=10)
@given(ARCHITECTURES)
def test_a_hypernetwork_predicts_all_parameters_and_learns_from_them(architecture: GptArchitecture) -> None:
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(hidden=8, num_classes=VOCABULARY, image_size=LENGTH))
    (predicted,) = ghn.predict_parameters([architecture])
    assert {name: tuple(tensor.shape) for name, tensor in predicted.items()} == {
        parameter.name: parameter.shape for parameter in architecture.program(LENGTH, VOCABULARY).parameters()
    }
    logits = run_program(architecture.program(LENGTH, VOCABULARY), predicted, texts())
    F.cross_entropy(logits[:, :-1].flatten(0, 1), texts()[:, 1:].flatten()).backward()
    gradients = [weight.grad for weight in ghn.decoder.weights.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_each_token_has_an_embedding_of_its_own() -> None:
    """A vocabulary is larger than what decoders can predict, yet no two rows are repetitions of each other."""
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(hidden=8, num_classes=256, image_size=LENGTH))
    (predicted,) = ghn.predict_parameters([GptArchitecture((TransformerBlock(1, 1),), C=8)])
    assert len(predicted["embedding.weight"].unique(dim=0)) == 256
    assert "embedding.weight" not in ghn.repeated_weights(
        GptArchitecture((TransformerBlock(1, 1),), C=8).graph(LENGTH, 256)
    )


@settings(max_examples=25)
@given(ARCHITECTURES)
def test_an_architecture_survives_its_record(architecture: GptArchitecture) -> None:
    assert network_from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ()}, "blocks"),
        ({"blocks": (TransformerBlock(3, 1),)}, "divisible by twice the 3 heads"),
        ({"blocks": (TransformerBlock(1, 0),)}, "mlp_ratio = 0"),
        ({"C": 16.0}, "C = 16.0"),
        ({"positions": "absolute"}, "positions = 'absolute': must be one of learned, rotary"),
        ({"activation": "swish"}, "activation = 'swish'"),
        ({"tied": 1}, "tied = 1: must be true or false"),
    ],
)
def test_impossible_architectures_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GptArchitecture((TransformerBlock(1, 1),), C=16), **changes)


def test_networks_that_compute_something_else_have_other_hashes() -> None:
    plain = GptArchitecture((TransformerBlock(1, 1), TransformerBlock(2, 3)), C=16)
    others = [
        replace(plain, positions="rotary"),
        replace(plain, activation="relu"),
        replace(plain, tied=True),
        replace(plain, parallel=True),
        replace(plain, C=24),
        replace(plain, blocks=(TransformerBlock(2, 3), TransformerBlock(1, 1))),
        replace(plain, blocks=(TransformerBlock(1, 1), TransformerBlock(1, 3))),
        replace(plain, blocks=(TransformerBlock(1, 1),)),
    ]
    hashes = {network.network_hash for network in (plain, *others)}
    assert len(hashes) == len(others) + 1


def test_estimated_statistics_leave_a_network_without_batch_norms_as_it_is() -> None:
    module = GptArchitecture((TransformerBlock(1, 1),), C=16).module(LENGTH, VOCABULARY)
    before = module(texts())
    estimate_running_statistics(module, [texts()])
    torch.testing.assert_close(module(texts()), before)


def test_a_hypernetwork_fills_the_module_of_a_name() -> None:
    torch.manual_seed(0)
    ghn = GHN(GHNConfig(hidden=8, num_classes=VOCABULARY, image_size=LENGTH))
    module = load("gpt/deep/2", VOCABULARY, LENGTH)
    report = ghn.predict(module)
    network = find_network("gpt/deep/2")
    assert isinstance(network, GptArchitecture) and len(network.blocks) >= 8
    (predicted,) = ghn.predict_parameters([network])
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in predicted.items())
    assert not report.not_predicted and len(state) == len(predicted)
    assert ghn.graph(module) == network.graph(LENGTH, VOCABULARY)


def test_the_layers_of_another_vocabulary_are_left_and_listed() -> None:
    ghn = GHN(GHNConfig(hidden=8, num_classes=VOCABULARY + 1, image_size=LENGTH))
    module = GptArchitecture((TransformerBlock(1, 1),), C=8).module(LENGTH, VOCABULARY)
    report = ghn.predict(module)
    assert set(report.not_predicted) == {"embedding.weight", "head.weight"}


@pytest.mark.parametrize(("length", "width"), [(16, 64), (32, 64), (62, 8), (64, 64), (128, 16), (1, 8), (7, 8)])
def test_each_position_has_a_row_of_its_own_that_follows_the_grid_by_rows(length: int, width: int) -> None:
    parameter = Parameter("positions.weight", (length, width), "encoding", "tokens")
    shape = positions_shape(parameter.shape)
    assert shape[:2] == (1, width) and shape[2] * shape[3] >= length
    decoded = torch.arange(shape[2] * shape[3]).view(1, 1, 1, *shape[2:]) + 1000 * torch.arange(width).view(-1, 1, 1)
    (table,) = arrange(decoded, parameter)
    assert torch.equal(table, torch.arange(length)[:, None] + 1000 * torch.arange(width))
    (node,) = [
        node
        for node in GptArchitecture((TransformerBlock(1, 1),), C=width).graph(length, VOCABULARY).nodes
        if node.primitive == "pos_enc"
    ]
    assert node.shape == shape and node.parameters == (parameter,)
