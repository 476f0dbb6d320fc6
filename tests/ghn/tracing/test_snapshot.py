"""Tracing leaves a network, and all that it can reach, as they were."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from awkward_networks import state
from torch import Tensor, nn

from ghn import trace
from ghn.tracing.snapshot import unchanged

SEEN_BY_ALL: list[Tensor] = []
KEPT_BY_SIZE: dict[int, Tensor] = {}


class Network(nn.Module):
    """A network that remembers something of its features in `remember`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def remember(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.remember(self.body(x)).mean((2, 3)))


class InList(Network):
    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def remember(self, x: Tensor) -> Tensor:
        self.features.append(x)
        return x


class InNestedContainers(Network):
    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {"all": ([], deque(maxlen=3)), "by name": defaultdict(list)}

    def remember(self, x: Tensor) -> Tensor:
        self.store["all"][0].append(x)
        self.store["all"][1].append(x)
        self.store["by name"]["body"].append(x)
        self.store["last"] = x
        return x


class InAttribute(Network):
    def remember(self, x: Tensor) -> Tensor:
        self.last = x
        self.body.last = x
        return x


class InOtherObject(Network):
    def __init__(self) -> None:
        super().__init__()
        self.monitor = type("Monitor", (), {})()

    def remember(self, x: Tensor) -> Tensor:
        self.monitor.last = x
        return x


class InGlobals(Network):
    def remember(self, x: Tensor) -> Tensor:
        SEEN_BY_ALL.append(x)
        return x


class InFunctionOfItsModule(Network):
    def remember(self, x: Tensor) -> Tensor:
        return x + positions(x)


def positions(x: Tensor) -> Tensor:
    side = x.shape[-1]
    if side not in KEPT_BY_SIZE:
        KEPT_BY_SIZE[side] = torch.arange(side, device=x.device) / side
    return KEPT_BY_SIZE[side]


@functools.lru_cache
def table(side: int, device: torch.device) -> Tensor:
    return torch.linspace(0, 1, side, device=device)


class InLruCache(Network):
    def remember(self, x: Tensor) -> Tensor:
        return x * table(x.shape[-1], x.device)


class InClosureOfHook(Network):
    def __init__(self) -> None:
        super().__init__()
        outputs: list[Tensor] = []
        count = 0

        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal count
            count += 1
            outputs.append(output)

        self.body.register_forward_hook(hook)
        self.read = lambda: (count, len(outputs))


class InHooks(Network):
    def remember(self, x: Tensor) -> Tensor:
        self.head.register_forward_hook(lambda layer, inputs, output: output * 2)
        return x


class InTensor(Network):
    def __init__(self) -> None:
        super().__init__()
        self.calls = [torch.zeros(())]

    def remember(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return x


class InBuffer(Network):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def remember(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return x


NETWORKS = [
    *(InList, InNestedContainers, InAttribute, InOtherObject, InGlobals, InFunctionOfItsModule, InLruCache),
    *(InClosureOfHook, InHooks, InTensor, InBuffer),
]


def contents(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Return what can be compared of a value: identities of objects, values of tensors."""
    if id(value) in seen:
        return "again"
    seen |= {id(value)}
    if isinstance(value, Tensor):
        return type(value), value.device.type, tuple(value.shape), value.tolist() if not value.is_meta else None
    if isinstance(value, dict):
        return [(key, contents(inner, seen)) for key, inner in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [contents(inner, seen) for inner in value]
    if isinstance(value, nn.Module) or hasattr(value, "__dict__"):
        return id(value), contents(vars(value), seen)
    return value


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_is_as_it_was_and_runs(kind: type[Network]) -> None:
    x = torch.randn(2, 3, 8, 8)
    model, twin = kind().eval(), kind().eval()
    twin.load_state_dict(model.state_dict())
    before, of_all, by_size = contents(model), list(SEEN_BY_ALL), dict(KEPT_BY_SIZE)
    trace(model, image_size=8)
    assert contents(model) == before
    assert of_all == SEEN_BY_ALL and KEPT_BY_SIZE.keys() <= by_size.keys() | {6}
    if hasattr(model, "read"):
        assert model.read() == (0, 0)
    assert torch.equal(model(x), twin(x))


class Notes:
    """A store without a dictionary, in a class variable of which all stores are kept too."""

    __slots__ = ("last", "seen")
    everything: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, x: Tensor) -> None:
        self.seen.append(x)
        self.last = x
        self.everything.append(x)


STORE, ARRAY, TOTAL = Notes(), np.zeros(2), torch.zeros(4)
GENERATOR = torch.Generator()
WEAK = weakref.WeakValueDictionary[str, Tensor]()
LATEST: Any = None


def in_slots_of_a_global_object(x: Tensor) -> None:
    STORE.add(x)


def in_a_list_of_another_module(x: Tensor) -> None:
    state.SEEN.append(x)


def in_a_global_name(x: Tensor) -> None:
    global LATEST
    LATEST = x


def in_an_attribute_of_a_class(x: Tensor) -> None:
    Network.latest = x


def in_an_array(x: Tensor) -> None:
    ARRAY[0] += len(x)


def in_a_tensor_that_features_are_added_to(x: Tensor) -> None:
    TOTAL.add_(x.mean((0, 2, 3)))


def in_a_generator_of_random_numbers(x: Tensor) -> None:
    torch.rand(2, generator=GENERATOR)


def in_the_random_numbers_of_all(x: Tensor) -> None:
    torch.rand(2)


def in_a_weak_dictionary(x: Tensor) -> None:
    STORE.seen.append(x)
    WEAK["x"] = x


def in_a_partial_and_a_method(x: Tensor) -> None:
    functools.partial(STORE.add, x)()


def in_what_a_module_imports(x: Tensor) -> None:
    state.BY_NAME.setdefault("x", []).append(x)


def reachable() -> list[Any]:
    """Return the contents of everything that the functions above write into."""
    return [
        *(list(STORE.seen), list(Notes.everything), getattr(STORE, "last", None), list(state.SEEN), LATEST),
        *(getattr(Network, "latest", None), ARRAY.tolist(), TOTAL.tolist(), TOTAL.device, TOTAL.requires_grad),
        *(GENERATOR.get_state().tolist(), torch.get_rng_state().tolist(), dict(WEAK), dict(state.BY_NAME)),
    ]


@pytest.mark.parametrize("runs_with_numbers", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        *(in_slots_of_a_global_object, in_a_list_of_another_module, in_a_global_name, in_an_attribute_of_a_class),
        *(in_an_array, in_a_tensor_that_features_are_added_to, in_a_generator_of_random_numbers),
        *(in_the_random_numbers_of_all, in_a_weak_dictionary, in_a_partial_and_a_method, in_what_a_module_imports),
    ],
)
def test_what_a_network_writes_elsewhere_is_as_it_was(write: Callable[[Tensor], None], runs_with_numbers: bool) -> None:
    class Writes(Network):
        def remember(self, x: Tensor) -> Tensor:
            write(x)
            return x if not runs_with_numbers or x.sum() < 1e9 else -x

    model = Writes()
    before = reachable()
    trace(model, image_size=8)
    assert repr(reachable()) == repr(before)


def test_containers_keep_their_identity_order_and_kind() -> None:
    ordered, plain, numbers = OrderedDict(a=1, b=2), {"x": 1}, {1, 2}
    roots = [ordered, plain, numbers]
    with unchanged(roots):
        ordered.move_to_end("a")
        plain["y"] = 2
        numbers.add(3)
    assert list(ordered) == ["a", "b"] and plain == {"x": 1} and numbers == {1, 2}
    assert roots == [ordered, plain, numbers] and roots[0] is ordered


def test_a_failure_restores_too() -> None:
    kept: list[int] = []
    with pytest.raises(RuntimeError), unchanged([kept]):
        kept.append(1)
        raise RuntimeError
    assert kept == []
