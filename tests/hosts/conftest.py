"""A machine that can have hosts, or a reason to skip these tests."""

from __future__ import annotations

import pytest
from namespaces import why_not


@pytest.fixture(scope="session", autouse=True)
def hosts_are_possible(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := why_not(tmp_path_factory.mktemp("hosts")):
        pytest.skip(reason)
