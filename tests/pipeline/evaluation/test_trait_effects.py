from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from evaluation_examples import example_candidates

from ghn.deepnets1m.traits import TRAITS
from pipeline.evaluation.traits import adjusted_differences, describe_networks, principal_components, trait_effects


def networks_with(rng: np.random.Generator, count: int, **shares: float) -> pd.DataFrame:
    traits = {name: rng.random(count) < shares.get(name, 0) for name in TRAITS}
    return pd.DataFrame({"split": "test", "index": range(count), **traits, "component_0": 0.0})


def scores_of(networks: pd.DataFrame, top1: pd.Series) -> pd.DataFrame:
    return networks[["split", "index"]].assign(initialisation="predicted", top1=top1)


def test_a_trait_that_only_comes_with_another_one_is_told_apart() -> None:
    """Attention costs nothing here, but networks with attention often lack convolutions, which costs 0.3."""
    rng = np.random.default_rng(0)
    networks = networks_with(rng, 300, attention=0.3)
    networks["no_convolution"] = networks["attention"] & (rng.random(300) < 0.7)
    top1 = 0.8 - 0.3 * networks["no_convolution"] + rng.normal(0, 0.02, 300)
    effects = trait_effects(scores_of(networks, top1), networks).set_index("trait")
    attention, convolution = effects.loc["attention"], effects.loc["no_convolution"]
    assert attention["difference"] < -0.15 and attention["corrected_p_value"] < 0.001
    assert abs(attention["adjusted"]) < 0.01 and attention["adjusted_low"] < 0 < attention["adjusted_high"]
    assert convolution["adjusted_low"] < -0.3 < convolution["adjusted_high"] < -0.28
    assert (convolution["worst"], convolution["worst_with"]) == (30, 30)
    assert convolution["top1_with"] - convolution["top1_without"] == pytest.approx(convolution["difference"])


def test_a_rare_trait_has_no_figures_and_does_not_count_for_the_correction() -> None:
    rng = np.random.default_rng(1)
    networks = networks_with(rng, 60, norm_free=0.5)
    networks.loc[:3, "deep"] = True
    top1 = 0.7 - 0.2 * networks["norm_free"] + rng.normal(0, 0.05, 60)
    effects = trait_effects(scores_of(networks, top1), networks).set_index("trait")
    assert effects.loc["deep", "networks_with"] == 4
    assert effects.loc["deep", ["difference", "p_value", "adjusted"]].isna().all()
    norm_free = effects.loc["norm_free"]
    assert norm_free["corrected_p_value"] == norm_free["p_value"] < 0.001


def test_the_regression_is_least_squares_with_an_intercept() -> None:
    rng = np.random.default_rng(2)
    traits = (rng.random((80, 3)) < 0.4).astype(float)
    top1 = rng.random(80)
    expected, *_ = np.linalg.lstsq(np.column_stack([np.ones(80), traits]), top1, rcond=None)
    found = adjusted_differences(traits, top1)
    assert [value for value, _, _ in found] == pytest.approx(expected[1:].tolist())
    assert all(low < value < high for value, low, high in found)


def test_principal_components_keep_distances_and_have_the_largest_variances_first() -> None:
    values = np.random.default_rng(3).normal(size=(40, 5)) * [1, 4, 2, 1, 3]
    components = principal_components(values)
    assert components.var(axis=0).tolist() == sorted(components.var(axis=0), reverse=True)
    distances, expected = (np.linalg.norm(x[:, None] - x, axis=-1) for x in (components, values))
    assert np.allclose(distances, expected)
    assert np.allclose(principal_components(values[:, ::-1]), components)


def test_every_candidate_has_a_row_with_its_own_traits() -> None:
    candidates = example_candidates()
    embeddings = np.random.default_rng(4).normal(size=(len(candidates), 8)).astype(np.float32)
    table = describe_networks(candidates, embeddings, 8, 10)
    assert table[["split", "index"]].to_numpy().tolist() == [[c.split, c.index] for c in candidates]
    assert table["attention"].tolist() == [False, False, False, True, False, False]
    assert table["norm_free"].tolist()[4]
    assert len(table.filter(like="component_").columns) == len(candidates)
