"""A Slurm cluster on hosts: its controller on the first, a daemon on each, and no accounting."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from namespaces import Host

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "sacct")
CONFIGURATION = """
ClusterName=hosts
SlurmctldHost={controller}({controller_address})
SlurmUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
StateSaveLocation=/tmp/slurm-state
SlurmdSpoolDir=/tmp/slurm-spool
SlurmctldPidFile=/tmp/slurmctld.pid
SlurmdPidFile=/tmp/slurmd.pid
SlurmctldLogFile=/tmp/slurmctld.log
SlurmdLogFile=/tmp/slurmd.log
SlurmdParameters=config_overrides
KillWait=60
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """Return why Slurm cannot be run on this machine; None: it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin") is None]
    return f"Slurm's {', '.join(missing)} are not installed" if missing else None


def start_slurm(hosts: Sequence[Host], shared: Path) -> None:
    """Start Slurm on hosts, and return when it can give all of them to a job."""
    names = [host.run("hostname").strip() for host in hosts]
    nodes = "\n".join(
        f"NodeName={name} NodeAddr={host.address} CPUs=1 State=UNKNOWN" for name, host in zip(names, hosts, strict=True)
    )
    text = CONFIGURATION.format(controller=names[0], controller_address=hosts[0].address, nodes=nodes)
    (shared / "slurm.conf").write_text(text)
    for host in hosts:
        host.environment["SLURM_CONF"] = "/mnt/slurm.conf"
        host.run("mkdir", "-p", "/tmp/slurm-state", "/tmp/slurm-spool")
    hosts[0].run("slurmctld")
    for name, host in zip(names, hosts, strict=True):
        host.run("slurmd", "-N", name)
    while hosts[0].run("sinfo", "--noheader", "--format=%t").split() != ["idle"]:
        time.sleep(0.2)
