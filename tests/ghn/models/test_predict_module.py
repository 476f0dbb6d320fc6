"""Predicting any network in place: what is overwritten, what is not, and what becomes of norm layers."""

from __future__ import annotations

import pytest
import torch
from examples import CLASSES, architectures, images, tiny_ghn
from hypothesis import given
from torch import Tensor, nn
from torch.func import functional_call

from ghn import Architecture
from ghn.models.predict_module import estimate_statistics, use_batch_statistics


def network(classes: int = CLASSES) -> nn.Sequential:
    """Everything that has a parameter and a place of its own in a report."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


@given(architectures())
def test_a_module_gets_what_its_architecture_is_predicted(architecture: Architecture) -> None:
    ghn, module = tiny_ghn(), architecture.module(16, CLASSES)
    assert ghn(module) is module
    (expected,) = ghn.predict_parameters([architecture], 16)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, expected[name])


@pytest.mark.parametrize("variant", ["ghn2", "ghn1", "mlp"])
def test_every_parameter_is_overwritten_and_reported(variant: str) -> None:
    model = network()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    report = tiny_ghn(variant).predict(model)
    assert report.predicted == tuple(before) and report.not_predicted == {}
    assert report.num_predicted == sum(p.numel() for p in model.parameters()) and report.num_not_predicted == 0
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_class_layers_can_be_left_as_they_are() -> None:
    model = network(classes=7)
    head = model[5].weight.clone()
    report = tiny_ghn().predict(model, predict_class_layers=False)
    assert set(report.not_predicted) == {"5.weight", "5.bias"} and report.num_not_predicted == 7 * 8 + 7
    assert all("predict_class_layers" in reason for reason in report.not_predicted.values())
    assert torch.equal(model[5].weight, head)


def test_a_layer_of_other_classes_is_left_and_the_report_says_why() -> None:
    model = network(classes=7)
    report = tiny_ghn().predict(model)
    assert set(report.not_predicted) == {"5.weight", "5.bias"}
    assert "classification layer of 7 classes, this hypernetwork predicts 3: 5.weight, 5.bias" in str(report)


def test_a_report_counts_and_names() -> None:
    model = network()
    model.unused = nn.Linear(4, 4)
    model.forward = lambda x: nn.Sequential(*list(model.children())[:6])(x)
    report = str(tiny_ghn().predict(model))
    assert "predicted 6 parameters (267 elements) from a graph of 7 nodes" in report
    assert "the output does not depend on it in evaluation mode: unused.weight, unused.bias" in report
    assert "1 norm layers use the statistics of each batch" in report


def test_norms_use_the_statistics_of_the_batch_after_a_prediction() -> None:
    model = network()
    report = tiny_ghn().predict(model)
    assert report.batch_statistics == ("1",) and report.estimated_statistics == ()
    x = images(16)
    assert torch.equal(model.eval()(x), model.train()(x))
    normalised = model[:2].eval()(x)
    expected = nn.functional.batch_norm(model[0](x), None, None, model[1].weight, model[1].bias, training=True)
    assert torch.equal(normalised, expected)


def test_running_statistics_are_the_mean_over_the_batches_of_images() -> None:
    model = network()
    model[1].running_mean += 5  # of other parameters
    batches = list(torch.randn(6, 20, 3, 16, 16))
    report = tiny_ghn().predict(model.train(), calibration_images=batches)
    assert report.estimated_statistics == ("1",) and report.batch_statistics == ()
    assert model.training and model[1].momentum == 0.1
    features = [model[0](batch) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in features]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)


@pytest.mark.parametrize("kind", ["tensor", "batches", "with labels"])
def test_images_to_estimate_from_come_in_any_form(kind: str) -> None:
    x = torch.randn(128, 3, 16, 16)
    given_images = {
        "tensor": x,
        "batches": iter(x.split(64)),
        "with labels": [(batch, torch.zeros(64)) for batch in x.split(64)],
    }
    model, other = network(), network()
    tiny_ghn().predict(model, calibration_images=given_images[kind])
    tiny_ghn().predict(other, calibration_images=x)
    assert torch.equal(model[1].running_mean, other[1].running_mean)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_statistics_can_be_estimated_after_they_were_dropped() -> None:
    model = network()
    use_batch_statistics(model)
    assert "1.running_mean" not in model.state_dict()
    estimate_statistics(model, images(16, 8))
    assert model.state_dict().keys() == network().state_dict().keys()
    alone, together = model.eval()(images(16)[:1]), model(images(16))[:1]
    torch.testing.assert_close(alone, together)  # an image no longer depends on its batch


def test_no_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        tiny_ghn().predict(network(), calibration_images=[])


def test_a_network_without_memory_is_an_error_that_says_what_to_do() -> None:
    with torch.device("meta"):
        model = network()
    assert len(tiny_ghn().graph(model).parameters) == 6
    with pytest.raises(ValueError, match="to_empty"):
        tiny_ghn().predict(model)


def test_only_the_heads_of_other_classes_are_left() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, CLASSES), nn.Linear(4, 7)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.other(x)

    report = tiny_ghn().predict(Heads())
    assert report.predicted == ("one.weight", "one.bias")
    assert all("of 7 classes" in reason for reason in report.not_predicted.values())


def test_instance_norms_without_statistics_get_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.BatchNorm2d(8))
    report = tiny_ghn().predict(model, calibration_images=images(16))
    assert report.estimated_statistics == ("2",)
    assert model[1].running_mean is None and not model[1].track_running_stats


@pytest.mark.parametrize("wrong", [[], torch.zeros(0, 3, 16, 16), [{"image": torch.zeros(2, 3, 16, 16)}]])
def test_images_that_cannot_be_used_are_refused_before_anything_is_overwritten(wrong: object) -> None:
    model = network()
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="images"):
        tiny_ghn().predict(model, image_size=16, calibration_images=wrong)
    assert torch.equal(model[0].weight, before)


def test_a_network_made_under_inference_mode_is_an_error_that_says_so() -> None:
    with torch.inference_mode():
        model = network()
    with pytest.raises(ValueError, match="inference_mode"):
        tiny_ghn().predict(model)


def test_a_network_of_half_precision_is_calibrated_with_ordinary_images() -> None:
    model = network().to(torch.bfloat16)
    assert tiny_ghn().predict(model, calibration_images=images(16)).estimated_statistics == ("1",)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_keep_their_number_type(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    tiny_ghn().predict(model)
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    assert model(images(16, dtype=dtype)).isfinite().all()


def test_predictions_for_a_module_carry_gradients_to_the_hypernetwork() -> None:
    ghn, model = tiny_ghn(), network()
    use_batch_statistics(model)
    (parameters,) = ghn.predict_parameters([model])
    functional_call(model, parameters, images(16)).square().sum().backward()
    assert all(weight.grad is not None for weight in ghn.decoder.parameters())


def test_modules_architectures_and_graphs_are_predicted_together() -> None:
    ghn, model = tiny_ghn(), network()
    alone = [ghn.predict_parameters([x])[0] for x in (model, ghn.graph(model))]
    together = ghn.predict_parameters([model, ghn.graph(model)])
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name])


def test_the_network_is_traced_with_the_images_that_it_is_to_see() -> None:
    class Gray(nn.Module):
        """Works for one size only and says it nowhere."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(19 * 19, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    assert not tiny_ghn().predict(Gray(), inputs=torch.zeros(2, 1, 19, 19)).not_predicted
    assert not tiny_ghn().predict(Gray(), calibration_images=torch.zeros(8, 1, 19, 19)).not_predicted


class KeepsForEvaluation(nn.Conv2d):
    """A layer that keeps what it computes from its parameters until it is trained, as attentions of LeViT do."""

    kept: torch.Tensor | None = None

    def train(self, mode: bool = True) -> nn.Module:
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None or self.training:
            self.kept = (self.weight * 2).detach()
        return nn.functional.conv2d(x, self.kept, self.bias)


def test_what_a_layer_keeps_of_its_old_parameters_is_dropped() -> None:
    network = nn.Sequential(KeepsForEvaluation(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout())).eval()
    network[1][0].train()
    with torch.no_grad():
        network(images(8))
    report = tiny_ghn().predict(network, image_size=8)
    assert not report.not_predicted
    assert [layer.training for layer in network.modules()] == [False, False, False, True, False]
    with torch.no_grad():
        network[0](images(8))
    assert torch.equal(network[0].kept, network[0].weight * 2)
