"""Candidates, images and an untrained hypernetwork."""

from __future__ import annotations

import pytest
from evaluation_examples import digits, example_candidates, make_ghn

from ghn import GHN
from pipeline.evaluation.networks import Candidate
from pipeline.images.dataset import Images


@pytest.fixture(autouse=True, scope="module")
def uses_one_thread(one_thread: None) -> None:
    """Let PyTorch use one thread in all tests of this folder."""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return digits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def candidates() -> list[Candidate]:
    return example_candidates()


@pytest.fixture
def ghn() -> GHN:
    return make_ghn(0)
