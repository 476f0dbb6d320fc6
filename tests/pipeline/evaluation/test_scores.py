from __future__ import annotations

import pytest
import torch

from pipeline.evaluation.scores import score

CPU = torch.device("cpu")


def test_a_network_that_knows_the_labels_scores_one() -> None:
    labels = torch.arange(10) % 3
    scores = score(lambda _: 50 * torch.eye(3)[labels], [(torch.zeros(10, 3, 8, 8), labels)], CPU)
    assert (scores.top1, scores.top5) == (1, 1)  # three classes have no first five
    assert scores.loss == pytest.approx(0, abs=1e-6)


def test_the_second_best_guess_counts_for_top5_alone() -> None:
    logits = torch.arange(10.0).flip(0).repeat(4, 1)
    scores = score(lambda _: logits, [(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 4, 5]))], CPU)
    assert (scores.top1, scores.top5) == (0.25, 0.75)


def test_logits_that_are_not_numbers_are_wrong_and_leave_no_loss() -> None:
    logits = torch.zeros(4, 10)
    logits[:, 0] = 1
    logits[:2, 3] = torch.nan
    scores = score(lambda _: logits, [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))], CPU)
    assert (scores.top1, scores.top5, scores.loss) == (0.5, 0.5, None)
