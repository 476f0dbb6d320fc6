from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_examples import ARCHITECTURES, SETTINGS, architecture, example_candidates, sgd_scores
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeline.errors import UserError
from pipeline.evaluation.inference_time import inference_seconds
from pipeline.evaluation.networks import candidates_of
from pipeline.evaluation.property_targets import (
    NEVER,
    other_properties,
    sgd_targets,
    time_targets,
    trained_candidates,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def test_the_targets_of_training_are_those_of_each_budget_and_of_the_largest() -> None:
    scores = sgd_scores(example_candidates())
    targets = sgd_targets(scores)
    assert list(targets) == ["top1_after_1", "top1_after_3", "noisy_top1", "convergence_time"]
    row = scores[(scores["index"] == 2) & (scores["epochs"] == 3)].iloc[0]
    expected = [row["top1"], row["noisy_top1"], row["convergence_steps"] / row["steps"]]
    assert targets.loc["test", 2].iloc[1:].tolist() == pytest.approx(expected)


def test_a_network_that_never_converges_is_later_than_all_others() -> None:
    convergence = sgd_targets(sgd_scores(example_candidates()))["convergence_time"]
    assert convergence["test", 3] == NEVER > convergence.drop(("test", 3)).max()


def test_a_network_without_one_of_the_budgets_has_no_such_target() -> None:
    scores = sgd_scores(example_candidates())
    targets = sgd_targets(scores[(scores["index"] != 1) | (scores["epochs"] != 3)])
    assert targets.loc["test", 1][["top1_after_3", "noisy_top1", "convergence_time"]].isna().all()
    assert targets.notna().all(axis=1).sum() == 5


def test_predicted_accuracy_is_missing_where_it_was_not_measured() -> None:
    scores = sgd_scores(example_candidates())
    evaluated = pd.DataFrame(
        {
            "split": "test",
            "index": [0, 0, 2],
            "initialisation": ["predicted", "random", "predicted"],
            "top1": [0.3, 0.1, 0.4],
        }
    )
    others = other_properties(scores, evaluated)
    assert others["predicted_top1"].isna().sum() == 4
    assert others["predicted_top1"].dropna().to_dict() == {("test", 0): 0.3, ("test", 2): 0.4}
    assert others["parameters"].gt(0).all()


def test_the_networks_of_a_table_are_found_in_its_order() -> None:
    candidates = example_candidates()
    assert trained_candidates(sgd_scores(candidates[3:1:-1]), candidates, "table") == [candidates[3], candidates[2]]


def test_a_table_of_other_networks_is_refused() -> None:
    trained = sgd_scores(candidates_of("test", ARCHITECTURES[::-1], SETTINGS, 8))
    with pytest.raises(UserError, match=r"sgd/scores.parquet has network \w+ as test/0, stage generate has another"):
        trained_candidates(trained, example_candidates(), "sgd/scores.parquet")


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_with_far_more_to_compute_takes_longer(device: str) -> None:
    small, large = (
        architecture("skip_connect", "skip_connect", C=8),
        architecture("conv_7x7", "conv_5x5", C=64, n_cells=12),
    )
    seconds = inference_seconds([small, large], 16, 10, batch=64, repeats=5, device=torch.device(device))
    assert 0 < seconds[0] < seconds[1]


def test_times_are_measured_with_one_thread_and_leave_the_threads_and_random_numbers_as_they_were() -> None:
    threads: set[int] = set()
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    watch = register_module_forward_pre_hook(lambda *_: threads.add(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        inference_seconds(ARCHITECTURES[:1], 8, 10, batch=2, repeats=2, device=torch.device("cpu"))
        assert torch.get_num_threads() == 2
    finally:
        watch.remove()
        torch.set_num_threads(before)
    assert threads == {1}
    assert torch.equal(state, torch.random.get_rng_state())


def test_times_have_a_column_for_each_device() -> None:
    times = time_targets(example_candidates(), 8, 10, batch=2, repeats=2)
    assert list(times) == (["cpu_seconds", "gpu_seconds"] if torch.cuda.is_available() else ["cpu_seconds"])
    assert times.index.tolist() == [("test", index) for index in range(6)]
    assert np.isfinite(times.to_numpy()).all() and (times > 0).all(axis=None)
