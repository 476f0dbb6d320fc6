from __future__ import annotations

import numpy as np
import pytest

from ghn.similarity import cosine
from ghn.similarity.cosine import nearest


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("block", [7, 1000])
def test_the_nearest_are_those_of_all_cosines(count: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosine, "BLOCK", block)
    rng = np.random.default_rng(0)
    queries_QH, candidates_NH = rng.standard_normal((20, 8)), rng.standard_normal((30, 8))
    lengths = np.outer(np.linalg.norm(queries_QH, axis=1), np.linalg.norm(candidates_NH, axis=1))
    cosines_QN = queries_QH @ candidates_NH.T / lengths
    order_QN = np.argsort(-cosines_QN, axis=1)[:, :count]
    found, places = nearest(queries_QH, candidates_NH, count)
    np.testing.assert_array_equal(places, order_QN)
    np.testing.assert_allclose(found, np.take_along_axis(cosines_QN, order_QN, axis=1), atol=1e-6)


def test_a_vector_is_nearest_to_itself_whatever_its_length() -> None:
    vectors = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float16)
    found, places = nearest(3 * vectors[::-1], vectors)
    assert places[:, 0].tolist() == list(range(50))[::-1]
    assert found[:, 0] == pytest.approx(1, abs=1e-6)


def test_zeros_are_at_a_cosine_of_zero() -> None:
    found, places = nearest(np.zeros((1, 3)), np.eye(3), 3)
    assert found.tolist() == [[0, 0, 0]] and places.tolist() == [[0, 1, 2]]
