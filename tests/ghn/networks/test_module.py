from __future__ import annotations

import copy
import pickle

import torch
from examples import CLASSES, architectures, images, one_operation, sample, tiny_ghn
from hypothesis import given
from hypothesis import strategies as st

from ghn import Architecture


@given(architectures(), st.sampled_from((8, 16, 28, 64)))
def test_a_module_and_the_functional_view_agree(architecture: Architecture, size: int) -> None:
    module = architecture.module(size, CLASSES).double().eval()
    own = dict(module.named_parameters())
    x = images(size, dtype=torch.float64)
    expected, logits = module(x), architecture.forward(own, x)
    torch.testing.assert_close(logits, expected)
    cotangent = torch.randn_like(logits)
    gradients = [torch.autograd.grad(y, list(own.values()), cotangent) for y in (logits, expected)]
    for functional, ordinary in zip(*gradients, strict=True):
        torch.testing.assert_close(functional, ordinary)


@given(architectures(), st.sampled_from((8, 28, 64)))
def test_a_module_has_the_parameters_of_the_program_and_nothing_else(architecture: Architecture, size: int) -> None:
    module = architecture.module(size, CLASSES)
    program = architecture.program(size, CLASSES)
    assert {name: tuple(x.shape) for name, x in module.state_dict().items()} == {
        p.name: p.shape for p in program.parameters()
    }
    assert sum(x.numel() for x in module.parameters()) == architecture.num_parameters(size, CLASSES)


@given(architectures())
def test_predicted_parameters_load_into_a_module(architecture: Architecture) -> None:
    with torch.no_grad():
        (predicted,) = tiny_ghn().predict_parameters([architecture])
        module = architecture.module(16, CLASSES).eval()
        module.load_state_dict(predicted)
        torch.testing.assert_close(module(images(16)), architecture.forward(predicted, images(16)))


def test_a_module_drops_out_in_training_only() -> None:
    module = one_operation("conv_3x3", fc_layers=2, fc_dim=256).module(8, CLASSES)
    assert not torch.equal(module(images(8)), module(images(8)))
    module.eval()
    assert torch.equal(module(images(8)), module(images(8)))


def test_a_replaced_layer_is_used_and_trained() -> None:
    module = one_operation("conv_3x3").module(8, CLASSES)
    module.classifier = torch.nn.Linear(module.classifier.in_features, 5)
    logits = module(images(8))
    assert logits.shape == (4, 5)
    logits.sum().backward()
    assert module.classifier.weight.grad is not None


def test_a_copy_has_parameters_of_its_own() -> None:
    module = sample("train", 0).module(8, CLASSES).eval()
    before = module(images(8))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(images(8)), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert not twin(images(8)).any()
        assert torch.equal(module(images(8)), before)


def test_a_module_learns_by_gradient_descent() -> None:
    module = one_operation("conv_3x3").module(8, CLASSES)
    labels = torch.tensor([0, 1, 2, 0])
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(module(images(8)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
