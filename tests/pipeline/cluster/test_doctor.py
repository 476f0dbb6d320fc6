"""What `ghn doctor` finds: on a cluster of two nodes, and of what nodes say that cannot be had on one machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from small_settings import ROOT

from pipeline.cluster.doctor import GIB, examine_nodes, findings_on
from pipeline.cluster.node_facts import NodeFacts, StorageFacts
from pipeline.cluster.ray_private import lost_nodes
from pipeline.commands.doctor import doctor
from pipeline.console import Finding
from pipeline.errors import UserError
from pipeline.params import Params

SUBJECTS = ["versions", "storage", "clocks", "disks", "memory", "GPUs"]
PACKAGES: dict[str, str | None] = {"ray": "2.60.0", "torch": "2.14.1"}
WELL = NodeFacts(
    node="10.0.0.2",
    python="3.11.9",
    packages=PACKAGES,
    seconds_ahead=0.1,
    free_disk=50 * GIB,
    free_memory=8 * GIB,
    gpus_of_ray=1,
    gpus=1,
    storage=StorageFacts("10.0.0.2"),
)


def problems(*facts: NodeFacts) -> list[tuple[str, str]]:
    return [(subject, problem) for subject, problem in findings_on(facts, "3.11.9", PACKAGES) if problem is not None]


def test_nothing_is_wrong_with_nodes_that_are_well() -> None:
    findings = findings_on([WELL, replace(WELL, node="10.0.0.3")], "3.11.9", PACKAGES)
    assert findings == [Finding(subject, None) for subject in SUBJECTS]


@pytest.mark.parametrize(
    ("fault", "subject", "words"),
    [
        ({"python": "3.10.4"}, "versions", "10.0.0.2 has Python 3.10.4, the head 3.11.9"),
        ({"packages": {**PACKAGES, "torch": "2.13.0"}}, "versions", "10.0.0.2 has torch 2.13.0, the head 2.14.1"),
        ({"packages": {**PACKAGES, "torch": None}}, "versions", "10.0.0.2 has no torch, the head 2.14.1"),
        (
            {"storage": StorageFacts("10.0.0.2", problem="s3://b cannot be written: denied")},
            "storage",
            "10.0.0.2: s3://b cannot be written: denied",
        ),
        (
            {"storage": StorageFacts("10.0.0.2", unseen=("10.0.0.3",))},
            "storage",
            "10.0.0.2 does not see what 10.0.0.3 wrote: of 2 nodes",
        ),
        ({"seconds_ahead": 3600.0}, "clocks", "the clock of 10.0.0.2 is 3600 s ahead"),
        ({"seconds_ahead": -5.0}, "clocks", "the clock of 10.0.0.2 is 5 s behind"),
        ({"free_disk": 3 * GIB}, "disks", "10.0.0.2 has 3.0 GiB of disk left"),
        ({"free_memory": GIB}, "memory", "10.0.0.2 has 1.0 GiB of memory left"),
        ({"gpus": 0}, "GPUs", "10.0.0.2: Ray counts 1 GPUs, PyTorch can use 0"),
    ],
)
def test_a_fault_of_one_node_is_one_line_that_names_the_node(fault: dict[str, Any], subject: str, words: str) -> None:
    ((found, problem),) = problems(replace(WELL, **fault), replace(WELL, node="10.0.0.3"))
    assert found == subject
    assert problem.startswith(words) and "\n" not in problem


@pytest.fixture
def two_nodes(small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Join a cluster whose second node has another version of a package."""
    other = tmp_path / "site"
    (other / "pyarrow-9.9.9.dist-info").mkdir(parents=True)
    (other / "pyarrow-9.9.9.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 9.9.9\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": os.pathsep.join([str(other), str(ROOT)])})
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_nodes_of_a_cluster_are_asked_themselves(two_nodes: None, small_project: Callable[..., Params]) -> None:
    findings = examine_nodes(small_project(workers={"number": 3}))
    wrong = {subject: problem for subject, problem in findings if problem is not None}
    assert set(wrong) == {"versions", "workers"}
    assert "has pyarrow 9.9.9, the head" in wrong["versions"]
    assert wrong["workers"] == "3 workers of 1 CPUs and 0 GPUs are set, and 2 nodes have room for 2"
    assert [subject for subject, problem in findings if problem is None] == SUBJECTS[1:]
    assert not list(Path("storage").rglob("*"))


@pytest.mark.slow
def test_a_node_is_lost_if_nobody_has_stopped_it() -> None:
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    stopped, killed = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address)
    try:
        cluster.remove_node(stopped, allow_graceful=True)
        assert lost_nodes(ray.nodes()) == []
        cluster.remove_node(killed, allow_graceful=False)
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            time.sleep(0.1)
        assert len(lost_nodes(ray.nodes())) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_problem_is_an_error_and_all_else_is_looked_at_too(
    small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    def no_cluster(params: Params) -> list[Finding]:
        raise UserError("no Ray cluster answers at '10.0.0.1:6379'\nstart a cluster")

    with pytest.raises(UserError, match="3 things are wrong"):
        doctor(small_project(), no_cluster)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["WRONG  cluster", "WRONG  MLflow", "WRONG  git"]
    assert lines[0].endswith("'10.0.0.1:6379'; start a cluster")
