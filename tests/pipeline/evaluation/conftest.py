"""Candidates, images and an untrained hypernetwork."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from evaluation_examples import digits, example_candidates, make_ghn

from ghn import GHN
from pipeline.evaluation.networks import Candidate
from pipeline.images.dataset import Images


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a worker has it; and where cores are busy, threads that wait for each other take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return digits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def candidates() -> list[Candidate]:
    return example_candidates()


@pytest.fixture
def ghn() -> GHN:
    return make_ghn(0)
