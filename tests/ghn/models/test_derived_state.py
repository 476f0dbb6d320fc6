"""State of old weights or activations is computed again, made neutral or estimated, and nothing else changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from examples import CLASSES, images, tiny_ghn
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torchvision.ops.misc import FrozenBatchNorm2d

from ghn.models.predict_module import calibration_batches


def network(*layers: nn.Module) -> nn.Sequential:
    """Return a network of 16×16 images whose first layers are given; they take and give 8 channels."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, *head)


SPECTRAL: dict[str, Callable[[], nn.Module]] = {
    "hook on a convolution": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)),
    "parametrised convolution": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "hook on a transposed convolution": lambda: nn.utils.spectral_norm(nn.ConvTranspose2d(8, 8, 3)),
    "parametrised 1×1 convolution": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
    "parametrised grouped convolution": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, groups=2)),
}


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("kind", SPECTRAL)
def test_weights_with_a_spectral_norm_have_a_norm_of_1(kind: str, is_training: bool) -> None:
    model = network(SPECTRAL[kind]()).train(is_training)
    tiny_ghn().predict(model, image_size=16)
    weight = model[1].weight.detach()
    matrix = weight.transpose(0, 1) if isinstance(model[1], nn.ConvTranspose2d) else weight
    assert float(torch.linalg.matrix_norm(matrix.flatten(1), 2)) == pytest.approx(1, abs=0.03)
    assert model.training is is_training


@pytest.mark.parametrize("make", [lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 3)), lambda: pruned(nn.Conv2d(8, 8, 3))])
def test_a_weight_that_a_hook_computes_is_that_of_the_new_parameters(make: Callable[[], nn.Module]) -> None:
    model = network(make())
    tiny_ghn().predict(model, image_size=16)
    read = model[1].weight.detach().clone()
    model(images(16))
    assert torch.equal(read, model[1].weight)


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


def test_an_orthogonal_weight_is_orthogonal() -> None:
    model = network()
    parametrizations.orthogonal(model[-1])
    tiny_ghn().predict(model, image_size=16)
    weight = model[-1].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(CLASSES), atol=1e-4, rtol=0)


def test_a_parametrised_weight_has_what_is_predicted_for_it() -> None:
    plain, parametrised = network(nn.Conv2d(8, 8, 3)), network(parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))
    tiny_ghn().predict(plain, image_size=16)
    report = tiny_ghn().predict(parametrised, image_size=16)
    assert not report.not_predicted
    scale = parametrised[1].parametrizations.weight.original0
    norms = parametrised[1].weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, scale.flatten().abs())


@pytest.mark.parametrize("row", [0, 2, -1])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_the_row_of_padding_keeps_its_values(kind: type[nn.Module], row: int) -> None:
    model = nn.Sequential(kind(5, 8, padding_idx=row), nn.Linear(8, CLASSES))
    before = model[0].weight.detach().clone()
    tiny_ghn().predict(model, inputs=torch.zeros(2, 4, dtype=torch.long))
    same = (model[0].weight == before).all(1).tolist()
    assert [position for position, is_same in enumerate(same) if is_same] == [row % 5]


class RemembersInMethod(nn.Conv2d):
    @functools.lru_cache  # noqa: B019
    def doubled(self) -> Tensor:
        return self.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.doubled(), self.bias)


class RemembersInProperty(nn.Conv2d):
    @functools.cached_property
    def doubled(self) -> Tensor:
        return self.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.doubled, self.bias)


@pytest.mark.parametrize("kind", [RemembersInMethod, RemembersInProperty])
def test_what_a_layer_remembers_of_its_old_weight_is_computed_again(kind: type[nn.Conv2d]) -> None:
    model = network(kind(8, 8, 3))
    model(images(16))
    report = tiny_ghn().predict(model, image_size=16)
    assert "1.weight" in report.predicted
    twin = network(kind(8, 8, 3))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(images(16)), twin(images(16)))


NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm without weights": lambda: nn.BatchNorm2d(8, affine=False),
    "synchronised": lambda: nn.SyncBatchNorm(8),
    "instance norm": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "frozen": lambda: FrozenBatchNorm2d(8),
}


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_of_old_activations_are_gone_and_named(kind: str) -> None:
    model = network(NORMS[kind]())
    model[1].running_mean += 7
    report = tiny_ghn().predict(model, image_size=16)
    assert model[1].running_mean is None or not model[1].running_mean.any()
    assert (*report.statistics.of_batch, *report.statistics.neutral) == ("1",)


@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind != "synchronised"])
def test_statistics_are_those_of_the_images_that_are_given(kind: str) -> None:
    model = network(NORMS[kind]())
    model[1].running_mean += 7
    report = tiny_ghn().predict(model, calibration_images=images(16))
    assert report.statistics.estimated == ("1",)
    x = model[0](images(16)).flatten(2)
    variance = x.var(2).mean(0) if kind == "instance norm" else x.var((0, 2))
    torch.testing.assert_close(model[1].running_mean, x.mean((0, 2)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model[1].running_var, variance, atol=1e-4, rtol=1e-3)


class Writes(nn.Module):
    """A layer that writes into everything that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.cache: dict[int, Any] = {}
        self.total = torch.zeros(8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.cache[len(x)] = x
        self.total += x.mean((0, 2, 3))
        self.mean.lerp_(x.mean((0, 2, 3)), 0.5)
        self.calls += 1
        self.count += 1
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_calibration_leaves_nothing_behind_but_statistics(fails: bool) -> None:
    model = network(Writes(), nn.BatchNorm2d(8))
    outputs: list[Tensor] = []
    model[0].register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [images(16), torch.zeros(2, 5, 16, 16) if fails else images(16)]
    if fails:
        with pytest.raises(RuntimeError, match="channels"):
            tiny_ghn().predict(model, calibration_images=batches)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    else:
        tiny_ghn().predict(model, calibration_images=batches)
        assert model[2].running_mean.any()
    layer = model[1]
    assert (layer.seen, layer.cache, layer.count, outputs) == ([], {}, 0, [])
    assert not layer.total.any() and not layer.mean.any() and layer.calls == 0


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(2, [2]), (64, [64]), (65, [33, 32]), (128, [64, 64]), (129, [43, 43, 43]), (130, [44, 43, 43])],
)
def test_a_tensor_of_images_is_taken_in_batches_of_nearly_one_size(count: int, sizes: list[int]) -> None:
    batches = calibration_batches(torch.zeros(count, 3, 4, 4), network())
    assert [len(batch) for batch in batches] == sizes


@pytest.mark.parametrize(
    ("given", "sizes"),
    [([4, 4, 1], [4, 5]), ([1, 4], [5]), ([1, 1, 1], [3]), ([4, 0, 4], [4, 4]), ([2], [2]), ([1, 1], [2])],
)
def test_a_single_image_joins_the_batch_before_it(given: list[int], sizes: list[int]) -> None:
    batches = calibration_batches([torch.zeros(count, 3, 4, 4) for count in given], network())
    assert [len(batch) for batch in batches] == sizes
