"""How many architectures per second training does on two hosts with one core each, beside one, over a network.

    sudo python benchmarks/scaling_on_hosts.py [options of benchmarks/scaling.py]

The hosts are namespaces of this machine on a bridge, as in tests/hosts; root may make them. A worker runs on each; Gloo
connects them over TCP. What is measured, and the last line, are those of benchmarks/scaling.py.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from frame import ROOT

sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "hosts")]

from namespaces import hosts, why_not


def main() -> int:
    """Run the benchmark on the first of two hosts, whose shared folder has the project."""
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder)
        if reason := why_not(shared):
            print(reason, file=sys.stderr)
            return 1
        with hosts(2, shared) as (head, other):
            for host in (head, other):
                host.start_ray(head)
            head.environment |= {"RAY_ADDRESS": f"{head.address}:6379", "TMPDIR": "/mnt"}
            options = ("--workers=2", "--placement=STRICT_SPREAD", *sys.argv[1:])
            command = head.command(sys.executable, str(ROOT / "benchmarks/scaling.py"), *options)
            return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
