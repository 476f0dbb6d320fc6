from __future__ import annotations

import pytest
import torch
from evaluation_examples import ARCHITECTURES, make_ghn

from pipeline.evaluation.initialisations import INITIALISATIONS, InitialisationContext, initial_tensors
from pipeline.evaluation.post_processing import orthogonalised

CONTEXT = InitialisationContext(make_ghn(0), image_size=8, classes=10, seed=3)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 4, 3, 3), (64, 4, 1, 1)])
def test_rows_become_orthogonal_or_columns_where_there_are_more_rows(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    matrix = orthogonalised({"weight": weight})["weight"].reshape(shape[0], -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(len(gram), dtype=torch.float64))
    torch.testing.assert_close(matrix.norm(), weight.norm())


def test_a_weight_that_is_orthogonal_stays() -> None:
    weight = 3 * torch.nn.init.orthogonal_(torch.empty(6, 10, dtype=torch.float64))
    torch.testing.assert_close(orthogonalised({"weight": weight})["weight"], weight)


def test_alike_rows_become_different() -> None:
    torch.manual_seed(0)
    alike = torch.randn(1, 20) + 0.01 * torch.randn(5, 20)
    rows = torch.nn.functional.normalize(orthogonalised({"weight": alike})["weight"], dim=1)
    assert float((rows @ rows.T - torch.eye(5)).abs().max()) < 1e-4


def test_depthwise_convolutions_position_embeddings_and_vectors_are_not_orthogonalised() -> None:
    tensors = {"depthwise": torch.randn(8, 1, 3, 3), "position": torch.randn(1, 8, 4, 4), "bias": torch.randn(8)}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in orthogonalised(tensors).items())


@pytest.mark.parametrize("network", ARCHITECTURES)
def test_orthogonalised_predictions_differ_from_predictions_and_are_the_same_again(network) -> None:
    name = "predicted_orthogonal"
    predicted, first = (initial_tensors(INITIALISATIONS[each], network, CONTEXT) for each in ("predicted", name))
    again = initial_tensors(INITIALISATIONS[name], network, CONTEXT)
    assert first.keys() == predicted.keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert all(tensor.isfinite().all() and tensor.shape == predicted[key].shape for key, tensor in first.items())
    assert any(not torch.equal(tensor, predicted[key]) for key, tensor in first.items())
