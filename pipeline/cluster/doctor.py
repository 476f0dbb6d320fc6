"""What is wrong with a cluster, or with this machine as one, before a run."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

import ray

from pipeline.cluster.node_facts import (
    PACKAGES,
    NodeFacts,
    StorageFacts,
    facts_of_all_nodes,
    storage_facts_of_all_nodes,
    version_of,
)
from pipeline.cluster.ray_cluster import nodes_at_most, ray_cluster, slots_of
from pipeline.cluster.ray_private import lost_nodes
from pipeline.console import Finding
from pipeline.params import Params, WorkerSettings

GIB = 2**30
LEAST_DISK = 10 * GIB
"""Ray keeps logs and what its memory cannot hold on the disk; decoded images are there too."""
LEAST_MEMORY = 2 * GIB
MOST_SECONDS_AHEAD = 2.0
"""S3 refuses requests whose clock is minutes off; MLflow shows steps in the order of their times."""


def examine_nodes(params: Params) -> list[Finding]:
    """Ask each node of the cluster that the settings name, or this machine, and return what was found.

    Raises:
        UserError: no cluster answers.
    """
    with ray_cluster(params.cluster.address, params.cluster.cpus):
        facts = facts_of_all_nodes(params.storage)
        lost = lost_nodes(ray.nodes())
        slots, most = slots_of(params.workers.cpus, params.workers.gpus), nodes_at_most()
    packages = {name: version_of(name) for name in PACKAGES}
    return [
        *findings_on(facts, platform.python_version(), packages),
        *_on_lost_nodes(lost),
        *_on_workers(params.workers, slots, most),
    ]


def storage_problems(storage: str) -> list[str]:
    """Return a line for each reason why nodes of the cluster that this process has joined do not share a storage."""
    facts = storage_facts_of_all_nodes(storage)
    return [text for node in facts for text in _on_storage(node, len(facts))]


def findings_on(facts: Sequence[NodeFacts], python: str, packages: dict[str, str | None]) -> list[Finding]:
    """Return the findings on nodes, one for each problem, and one without for what is well everywhere.

    Args:
        python, packages: the versions on the node that asks.
    """
    problems: dict[str, list[str | None]] = {
        "versions": [text for node in facts for text in _on_versions(node, python, packages)],
        "storage": [text for node in facts for text in _on_storage(node.storage, len(facts))],
        "clocks": [text for node in facts for text in _on_clock(node)],
        "disks": [text for node in facts for text in _on_room(node, "disk", node.free_disk, LEAST_DISK)],
        "memory": [text for node in facts for text in _on_room(node, "memory", node.free_memory, LEAST_MEMORY)],
        "GPUs": [text for node in facts for text in _on_gpus(node)],
    }
    return [Finding(subject, text) for subject, found in problems.items() for text in found or [None]]


def _on_versions(node: NodeFacts, python: str, packages: dict[str, str | None]) -> Iterator[str]:
    if node.python != python:
        yield f"{node.node} has Python {node.python}, the head {python}: make both from the same image"
    for name, theirs in node.packages.items():
        if theirs != packages[name]:
            have = "no " + name if theirs is None else f"{name} {theirs}"
            yield f"{node.node} has {have}, the head {packages[name]}: install from constraints.txt on both"


def _on_storage(facts: StorageFacts, nodes: int) -> Iterator[str]:
    if facts.problem is not None:
        yield f"{facts.node}: {facts.problem}"
    if facts.unseen:
        others = ", ".join(facts.unseen)
        yield f"{facts.node} does not see what {others} wrote: of {nodes} nodes all need the same folder, or a bucket"


def _on_clock(node: NodeFacts) -> Iterator[str]:
    if abs(node.seconds_ahead) > MOST_SECONDS_AHEAD:
        direction = "ahead" if node.seconds_ahead > 0 else "behind"
        yield f"the clock of {node.node} is {abs(node.seconds_ahead):.0f} s {direction}: run a time service there"


def _on_room(node: NodeFacts, what: str, free: int, least: int) -> Iterator[str]:
    if free < least:
        yield f"{node.node} has {free / GIB:.1f} GiB of {what} left, {least / GIB:.0f} or more are needed: make room"


def _on_gpus(node: NodeFacts) -> Iterator[str]:
    if node.gpus < node.gpus_of_ray:
        yield (
            f"{node.node}: Ray counts {node.gpus_of_ray:g} GPUs, PyTorch can use {node.gpus}: "
            "its driver may be too old for the CUDA of PyTorch, or the container lacks --gpus"
        )


def _on_lost_nodes(lost: Sequence[str]) -> list[Finding]:
    if not lost:
        return []
    return [Finding("nodes", f"{len(lost)} nodes were lost since the cluster began: {', '.join(sorted(set(lost)))}")]


def _on_workers(workers: WorkerSettings, slots: int, nodes: int) -> list[Finding]:
    needed = workers.minimum or workers.number
    if slots >= needed:
        return [Finding("workers", None)]
    size = f"{workers.cpus} CPUs and {workers.gpus:g} GPUs"
    return [Finding("workers", f"{needed} workers of {size} are set, and {nodes} nodes have room for {slots}")]
