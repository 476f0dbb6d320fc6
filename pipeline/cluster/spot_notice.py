"""Drain a node before AWS takes its spot instance back: two minutes before, which is enough for a checkpoint.

    python -m pipeline.cluster.spot_notice

Runs on each worker node (see cluster.yaml) and asks the instance's metadata service. Once there is a notice, the node
is drained: Ray starts nothing new there, and Ray Train tells its workers (`ray.train.get_preemption_info`).

Source: "Spot Instance interruption notices", Amazon EC2 User Guide.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Annotated
from urllib.error import HTTPError

import typer

METADATA = "http://169.254.169.254"
TOKEN_SECONDS = 21_600
"""Lifetime of a token of the metadata service."""


def notice() -> datetime | None:
    """Return when the instance will be taken back; None as long as that is not planned.

    Raises:
        Exception: the metadata service does not answer, or not as documented.
    """
    address = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA).rstrip("/")
    try:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        token = _ask(urllib.request.Request(f"{address}/latest/api/token", method="PUT", headers=lifetime))
        place = f"{address}/latest/meta-data/spot/instance-action"
        action = _ask(urllib.request.Request(place, headers={"X-aws-ec2-metadata-token": token}))
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return datetime.fromisoformat(json.loads(action)["time"])


def notice_if_any() -> datetime | None:
    """Return the same, and None, with a line on stderr, when the service does not answer as documented."""
    try:
        return notice()
    except (OSError, HTTPException, ValueError, KeyError) as error:
        print(f"the metadata service does not answer: {error}", file=sys.stderr, flush=True)
        return None


def _ask(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()


def main(
    poll_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two requests.")] = 5.0,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, where it is not this node's.")] = None,
    node_id: Annotated[str | None, typer.Option(help="The node to drain, where it is not this one.")] = None,
) -> None:
    """Wait for a notice that this spot instance is taken back, then drain its Ray node."""
    while (end := notice_if_any()) is None:
        time.sleep(poll_seconds)
    left = max(1, int((end - datetime.now(UTC)).total_seconds()))
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "AWS takes the instance back", "--deadline-remaining-seconds", str(left)]
    for option, value in (("--address", address), ("--node-id", node_id)):
        if value:
            command += [option, value]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    typer.run(main)
