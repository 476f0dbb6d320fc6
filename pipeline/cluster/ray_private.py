"""Private interfaces of Ray, checked with Ray 2.60."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated.common_pb2 import NodeDeathInfo  # type: ignore[attr-defined]

START_UP_LOGGER = "ray._private.authentication"
"""Logger that reports at each start that the cluster is protected by a token: true, and nothing to act on."""


SOCKET_BYTES = 107
"""The most bytes that the path of a Unix socket may have on Linux."""

LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.9"
"""The longest path of a socket below Ray's temporary folder, with a process number of seven digits."""

SHORT_TEMP_DIR = "/tmp/ray"
"""Ray's temporary folder where TMPDIR is not set."""


def bootstrap_address(address: str) -> str:
    """Return "host:port" of the cluster of an address; "auto" is the one that runs on this machine.

    A host that means this machine (127.0.0.1, localhost) becomes the address at which other nodes reach it.

    Raises:
        ValueError: the address is not host:port, and there is no cluster on this machine for "auto".
    """
    found = canonicalize_bootstrap_address(address)
    if found is None:
        raise ValueError("no cluster on this machine")
    host_and_port(found)
    return found


def host_and_port(address: str) -> tuple[str, int]:
    """Split "host:port" or "[host]:port"; ValueError where it is neither."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def lost_nodes(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the addresses of nodes, as `ray.nodes()` describes them, that ended without being told to.

    Those that the autoscaler has stopped, or a signal, or a notice of the cloud, are not lost.
    """
    without_a_reason = (NodeDeathInfo.UNSPECIFIED, NodeDeathInfo.UNEXPECTED_TERMINATION)
    return [
        node["NodeManagerAddress"] for node in nodes if not node["Alive"] and node["DeathReason"] in without_a_reason
    ]


def is_driver() -> bool:
    """Return whether this process is connected to Ray as a driver, not as one of its workers."""
    return ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE


def temp_dir_for_sockets() -> str | None:
    """Return a folder for Ray's files where the default, below TMPDIR, has too long a path; None where it has not.

    Ray talks through sockets in it, whose paths are limited by the system.
    """
    if len(os.fsencode(get_default_ray_temp_dir())) + len(LONGEST_SOCKET) <= SOCKET_BYTES:
        return None
    return SHORT_TEMP_DIR
