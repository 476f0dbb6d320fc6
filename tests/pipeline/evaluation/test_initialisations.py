from __future__ import annotations

import pytest
import torch
from evaluation_examples import ARCHITECTURES, make_ghn
from torch import nn

from ghn import GHN
from ghn.deepnets1m.sampling import sample_architecture
from pipeline.evaluation.initialisations import (
    INITIALISATIONS,
    Initialisation,
    InitialisationContext,
    initialised_module,
    load_body,
)
from pipeline.evaluation.networks import Candidate, fresh_module

PREDICTED, RANDOM = INITIALISATIONS["predicted"], INITIALISATIONS["random"]
CONTEXT = InitialisationContext(make_ghn(0), image_size=8, classes=10, seed=3)


def constant(value: float) -> Initialisation:
    return Initialisation(
        f"constant {value}",
        lambda network, context: {
            p.name: torch.full(p.shape, value)
            for p in network.program(context.image_size, context.classes).parameters()
        },
    )


def test_random_initialisation_is_that_of_pytorch(candidates: list[Candidate]) -> None:
    module = initialised_module(RANDOM, candidates[0].network, CONTEXT)
    expected = fresh_module(candidates[0].network, 8, 10, seed=3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


@torch.no_grad()
def test_a_module_with_predicted_tensors_gives_the_logits_of_the_functional_view(ghn: GHN) -> None:
    """To rounding: the functional view computes only what small maps meet of a kernel."""
    networks = [sample_architecture(0, "deep", index).with_width(32, fc_dim=64) for index in range(6)]
    x_BCSS = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for network in networks:
        (parameters,) = ghn.predict_parameters([network], 8, 10)
        module = initialised_module(PREDICTED, network, InitialisationContext(ghn, 8, 10, seed=0)).eval()
        expected = network.forward(parameters, x_BCSS)
        torch.testing.assert_close(module(x_BCSS), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_parameters_that_are_not_returned_stay_in_the_default_initialisation() -> None:
    network = ARCHITECTURES[0]
    first = next(network.program(8, 10).parameters()).name
    partly = Initialisation("partly", lambda *_: {first: torch.zeros_like(module.get_parameter(first))})
    module = fresh_module(network, 8, 10, seed=3)
    for name, parameter in initialised_module(partly, network, CONTEXT).named_parameters():
        assert torch.equal(parameter, torch.zeros_like(parameter) if name == first else module.get_parameter(name))


def test_random_numbers_of_an_initialisation_are_a_function_of_the_seed() -> None:
    def noise(network, context):
        return {p.name: torch.randn(p.shape) for p in network.program(8, 10).parameters()}

    def first_parameter() -> torch.Tensor:
        return next(initialised_module(Initialisation("noise", noise), ARCHITECTURES[0], CONTEXT).parameters())

    before = first_parameter()
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(first_parameter(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tensor_of_no_parameter_is_refused_with_its_name() -> None:
    wrong = Initialisation("wrong", lambda *_: {"nowhere.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"wrong: the network has no parameter nowhere\.weight"):
        initialised_module(wrong, ARCHITECTURES[0], CONTEXT)


def test_everything_but_the_classification_layer_is_predicted(ghn: GHN) -> None:
    network = ARCHITECTURES[1]
    module, random = (fresh_module(network, 8, 4, seed=4) for _ in range(2))
    load_body(module, PREDICTED, network, InitialisationContext(ghn, 8, ghn.config.num_classes, seed=4))
    (predicted,) = ghn.predict_parameters([network], 8)
    classifier = class_layer(module)
    assert len(classifier) == 2
    for name, parameter in module.named_parameters():
        source = random.get_parameter(name) if name in classifier else predicted[name]
        assert torch.equal(parameter, source), name


def test_the_loaded_body_shares_no_memory_so_that_sgd_can_change_it(ghn: GHN) -> None:
    network = ARCHITECTURES[1]
    module = fresh_module(network, 8, 10, seed=4)
    shared = torch.ones(10**6)
    names = {name: parameter.shape for name, parameter in module.named_parameters()}
    views = Initialisation(
        "views", lambda *_: {name: shared[: shape.numel()].view(shape) for name, shape in names.items()}
    )
    load_body(module, views, network, CONTEXT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert shared.all()


def test_the_body_of_any_initialisation_leaves_out_the_classification_layer() -> None:
    network = ARCHITECTURES[0]
    module = fresh_module(network, 8, 4, seed=4)
    load_body(module, constant(0.5), network, CONTEXT)
    for name, parameter in module.named_parameters():
        assert (parameter == 0.5).all() == (name not in class_layer(module)), name


def class_layer(module: nn.Module) -> set[str]:
    return {parameter.name for parameter in module.program.operations[-1].parameters}
