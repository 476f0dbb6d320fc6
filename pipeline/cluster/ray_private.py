"""Private interfaces of Ray, checked with Ray 2.60."""

from __future__ import annotations

import ray
from ray._private.services import canonicalize_bootstrap_address

START_UP_LOGGER = "ray._private.authentication"
"""Logger that reports at each start that the cluster is protected by a token: true, and nothing to act on."""


def host_and_port(address: str) -> tuple[str, int]:
    """Return where the cluster of an address listens; "auto" is the one that runs on this machine.

    Raises:
        ValueError: the address is not host:port, and there is no cluster on this machine for "auto".
    """
    host, _, port = (canonicalize_bootstrap_address(address) or "").rpartition(":")
    return host.strip("[]"), int(port)


def is_driver() -> bool:
    """Return whether this process is connected to Ray as a driver, not as one of its workers."""
    return ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE
