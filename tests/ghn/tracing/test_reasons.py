"""Parameters that are hard to place: where they are predicted, and the true reason where they are not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from examples import CLASSES, tiny_ghn
from small_networks import Calls, assert_predicted, named, parameter
from torch import Tensor, nn
from torch.nn import functional as F

from ghn import trace

UNUSED = "the output does not depend on it in evaluation mode"
WITHOUT_GRADIENTS = "it is used, but no gradients flow to it from the output"
NOT_ROUTED = "it was not used with the inputs of the trace"


def layers() -> dict[str, Any]:
    return {"fc": nn.Linear(4, CLASSES), "odd": parameter(4)}


def unless_training(self: Any, x: Tensor) -> Tensor:
    return self.fc(x * self.odd if self.training else x)


def asks_for_its_shape(self: Any, x: Tensor) -> Tensor:
    return self.fc(x / self.odd.shape[0])


def asks_whether_it_needs_gradients(self: Any, x: Tensor) -> Tensor:
    return self.fc(x) * (2 if self.odd.requires_grad else 1)


def only_has_it(self: Any, x: Tensor) -> Tensor:
    return self.fc(x)


def keeps_it(self: Any, x: Tensor) -> Tensor:
    self.kept = [self.odd]
    return self.fc(x)


@pytest.mark.parametrize(
    "function", [unless_training, asks_for_its_shape, asks_whether_it_needs_gradients, only_has_it, keeps_it]
)
def test_the_output_does_not_depend_on_a_parameter_that_no_function_is_called_with(function: Callable) -> None:
    network, x = Calls(function, **layers()).eval(), torch.randn(2, 4)
    assert trace(network, x).not_predicted == {"odd": UNUSED}
    before = network(x)
    network.odd.data += 1
    assert torch.equal(network(x), before)


def throws_it_away(self: Any, x: Tensor) -> Tensor:
    _ = x * self.odd
    return self.fc(x)


def compares(self: Any, x: Tensor) -> Tensor:
    return self.fc(x * (self.odd > 0))


def rounds(self: Any, x: Tensor) -> Tensor:
    return self.fc(x + self.odd.argmax())


def looks_at_its_number(self: Any, x: Tensor) -> Tensor:
    return self.fc(x * float(self.odd.sum()))


def branches_on_it(self: Any, x: Tensor) -> Tensor:
    return self.fc(x) if self.odd.sum() > 0 else -self.fc(x)


def routes_by_it(self: Any, x: Tensor) -> Tensor:
    return self.fc(x[:, self.odd.long().clamp(0, 3)])


@pytest.mark.parametrize(
    "function", [throws_it_away, compares, rounds, looks_at_its_number, branches_on_it, routes_by_it]
)
def test_a_parameter_that_is_used_without_gradients_is_not_called_unused(function: Callable) -> None:
    assert trace(Calls(function, **layers()), torch.randn(2, 4)).not_predicted == {"odd": WITHOUT_GRADIENTS}


def detaches(self: Any, x: Tensor) -> Tensor:
    return self.fc(x * self.odd.detach())


def takes_its_data(self: Any, x: Tensor) -> Tensor:
    return self.fc(x * self.odd.data)


@torch.no_grad()
def without_gradients(self: Any, x: Tensor) -> Tensor:
    return self.fc(x * self.odd)


def keeps_it_in_a_list(self: Any, x: Tensor) -> Tensor:
    return self.fc(x * self.holder.items[0])


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("function", [detaches, takes_its_data, without_gradients, keeps_it_in_a_list])
def test_a_parameter_is_predicted_wherever_it_is_kept_and_gradients_are_off(
    function: Callable, is_frozen: bool
) -> None:
    network = Calls(function, **layers())
    network.holder = SimpleNamespace(items=[network.odd])
    graph = trace(network.requires_grad_(not is_frozen), torch.randn(2, 4))
    assert not graph.not_predicted and named(graph)["odd"][0] == "ln"


def test_a_parameter_that_is_also_in_a_list_is_not_written_into() -> None:
    def writes(self: Any, x: Tensor) -> Tensor:
        self.holder.items[0].data.zero_()
        with torch.no_grad():
            self.holder.items[0].add_(1)
        return self.fc(x * self.odd)

    network = Calls(writes, **layers())
    network.holder = SimpleNamespace(items=[network.odd])
    before = network.odd.detach().clone()
    trace(network, torch.randn(2, 4))
    assert torch.equal(network.odd, before)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 2)])
def test_a_parameter_without_elements_is_listed(shape: tuple[int, ...]) -> None:
    network = Calls(lambda self, x: self.fc(torch.cat([x.flatten(), self.odd.flatten()]).view(2, 4)), **layers())
    network.odd = parameter(*shape)
    report = tiny_ghn().predict(network, inputs=torch.randn(2, 4))
    assert report.not_predicted == {"odd": "it has no elements"}


# Mixtures of experts


def route(self: Any, x: Tensor) -> Tensor:
    best = self.router(x).argmax(1)
    out = torch.zeros_like(x)
    for number, expert in enumerate(self.experts):
        if (best == number).any():
            out[best == number] = expert(x[best == number])
    return self.fc(out)


EXPERTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "without a bias": lambda: nn.Linear(4, 4, bias=False),
    "of two layers": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)),
    "with a norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)),
    "residual": lambda: Calls(lambda self, x: x + self.fc(x), fc=nn.Linear(4, 4)),
    "gated": lambda: Calls(lambda self, x: self.a(x) * self.b(x).sigmoid(), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_without_a_token_are_predicted_like_those_that_have_some(kind: str) -> None:
    experts = nn.ModuleList(EXPERTS[kind]() for _ in range(4))
    network = Calls(route, router=nn.Linear(4, 4), experts=experts, fc=nn.Linear(4, CLASSES))
    graph = trace(network, torch.randn(2, 4))
    assert graph.not_predicted == {"router.weight": WITHOUT_GRADIENTS, "router.bias": WITHOUT_GRADIENTS}
    roles = {name: (primitive, p.role) for name, (primitive, p) in named(graph).items()}
    for name in roles:
        if name.startswith("experts."):
            assert all(roles[f"experts.{n}.{name.split('.', 2)[2]}"] == roles[name] for n in range(4))
    assert all(source < target for source, target in graph.edges)
    assert_predicted(network, graph)


def test_an_expert_without_a_token_and_unlike_all_others_was_not_used_with_these_inputs() -> None:
    experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False)])
    network = Calls(route, router=nn.Linear(4, 2), experts=experts, fc=nn.Linear(4, CLASSES))
    network.router.bias.data[:] = torch.tensor([100.0, 0.0])
    assert trace(network, torch.randn(2, 4)).not_predicted["experts.1.weight"] == NOT_ROUTED


# Values made of parameters alone


def added(self: Any, x: Tensor) -> Tensor:
    return x + (self.a + self.b)


def normalised(self: Any, x: Tensor) -> Tensor:
    return x + F.layer_norm(self.table, (4,), self.a, self.b)[0]


def standardised(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, (self.table - self.table.mean()) / self.table.std())


def of_unit_length(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, F.normalize(self.table))


def stacked(self: Any, x: Tensor) -> Tensor:
    return x * torch.stack([self.a, self.b]).mean(0)


def exponential(self: Any, x: Tensor) -> Tensor:
    return x * self.a.exp()


@pytest.mark.parametrize(
    ("function", "roles"),
    [
        (added, {"a": "bias", "b": "bias"}),
        (normalised, {"table": "encoding", "a": "scale", "b": "bias"}),
        (standardised, {"table": "weight"}),
        (of_unit_length, {"table": "weight"}),
        (stacked, {"a": "scale", "b": "scale"}),
        (exponential, {"a": "scale"}),
    ],
)
def test_parameters_that_meet_each_other_first_have_the_role_that_they_have_for_features(
    function: Callable, roles: dict[str, str]
) -> None:
    made = {"a": parameter(4), "b": parameter(4), "table": parameter(4, 4)}
    network = Calls(function, **{name: made[name] for name in roles})
    graph = trace(network, torch.randn(2, 4))
    assert {name: p.role for name, (_, p) in named(graph).items()} == roles
    assert_predicted(network, graph)


# Which layer classifies

BESIDE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a map": lambda y, x: (y, x[:, None, None]),
    "a hidden state": lambda y, x: {"logits": y, "hidden": [x[None]]},
    "a number": lambda y, x: (y, x.sum()),
    "nothing": lambda y, x: [None, y],
    "probabilities": lambda y, x: y.softmax(1),
    "a distribution": lambda y, x: torch.distributions.Categorical(logits=y, validate_args=False),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_the_layer_that_gives_the_logits_classifies_whatever_is_beside_them(kind: str) -> None:
    network = Calls(lambda self, x: BESIDE[kind](self.fc(x), x), fc=nn.Linear(4, CLASSES))
    graph = trace(network, torch.randn(2, 4))
    assert [p.name for node in graph.nodes if node.is_class_layer for p in node.parameters] == ["fc.weight", "fc.bias"]


# Wrappers

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "sequential": lambda network: nn.Sequential(nn.Sequential(network)),
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "in a list": lambda network: Calls(lambda self, x: self.all[0](x), all=nn.ModuleList([network])),
    "in a dictionary": lambda network: Calls(lambda self, x: self.all["it"](x), all=nn.ModuleDict({"it": network})),
    "called by a function": lambda network: Calls(lambda self, x: F.relu(self.it.forward(x)), it=network),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_network_has_the_graph_of_the_network(kind: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    expected, graph = trace(network, image_size=8), trace(WRAPPERS[kind](network), image_size=8)
    assert (graph.primitives, graph.edges, graph.shapes) == (expected.primitives, expected.edges, expected.shapes)
    assert [a.name.endswith(b.name) for a, b in zip(graph.parameters, expected.parameters, strict=True)] == [True] * 6
