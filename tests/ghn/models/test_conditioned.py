from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ghn import GHNConfig, sample_architecture
from ghn.models.conditioned import ConditionedHypernetwork
from ghn.models.hypernetwork import Hypernetwork

STATISTICS = 12


@pytest.fixture
def model() -> ConditionedHypernetwork:
    torch.manual_seed(0)
    return ConditionedHypernetwork(GHNConfig(10, 8, hidden=16, kernel=5, dirac=True), STATISTICS)


def predicted(ghn: Hypernetwork, classes: int) -> dict[str, torch.Tensor]:
    network = sample_architecture(0, "test", 1).with_width(16, fc_dim=32)
    (parameters,) = ghn.predict_parameters([network], 8, classes)
    return parameters


@pytest.mark.parametrize("classes", [2, 10, 13])
def test_a_view_predicts_what_the_ordinary_hypernetwork_does(model: ConditionedHypernetwork, classes: int) -> None:
    statistics = torch.randn(classes, STATISTICS)
    view, ordinary = model.for_statistics(statistics), model.specialised(statistics)
    assert ordinary.config.num_classes == classes
    for (name, tensor), other in zip(
        predicted(view, classes).items(), predicted(ordinary, classes).values(), strict=True
    ):
        torch.testing.assert_close(tensor, other, msg=name)


def test_the_classes_have_no_order(model: ConditionedHypernetwork) -> None:
    statistics, order = torch.randn(5, STATISTICS), torch.tensor([3, 0, 4, 1, 2])
    first, second = (predicted(model.specialised(rows), 5) for rows in (statistics, statistics[order]))
    *body, weight, bias = first
    for name in body:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5, msg=name)
    for name in (weight, bias):
        torch.testing.assert_close(first[name][order], second[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first[name], second[name], atol=1e-3)


def test_another_data_set_gives_other_parameters_of_the_body(model: ConditionedHypernetwork) -> None:
    first, second = (predicted(model.specialised(torch.randn(5, STATISTICS)), 5) for _ in range(2))
    assert not torch.allclose(next(iter(first.values())), next(iter(second.values())), atol=1e-5)


def test_gradients_reach_all_weights_but_the_rows_that_are_replaced(model: ConditionedHypernetwork) -> None:
    view = model.for_statistics(torch.randn(4, STATISTICS))
    sum(tensor.square().sum() for tensor in predicted(view, 4).values()).backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {
        f"body.decoder.{part}.classes.{kind}" for part in ("weights", "vectors") for kind in ("weight", "bias")
    }


def test_the_ordinary_hypernetwork_is_a_checkpoint_like_any_other(
    model: ConditionedHypernetwork, tmp_path: Path
) -> None:
    ordinary = model.specialised(torch.randn(3, STATISTICS))
    ordinary.save(tmp_path / "checkpoint")
    again = Hypernetwork.from_pretrained(tmp_path / "checkpoint")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ordinary.state_dict().items())
