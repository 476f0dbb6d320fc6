"""Start and stop the cluster of cluster.yaml on an AWS of moto, with Ray's launcher and the autoscaler of its head.

EC2, IAM and SSM answer as those of AWS do, with permissions, but no machine is started. `ssh` and `rsync` are scripts
that note how they are called and answer what Ray asks of a machine with Docker.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import jmespath
import pytest
import yaml
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

# Private interfaces of Ray, checked with Ray 2.60.
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.sdk import create_or_update_cluster, teardown_cluster
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.core.generated.instance_manager_pb2 import Instance
from small_settings import ROOT

pytestmark = pytest.mark.slow

TEXT = (ROOT / "cluster.yaml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
CLUSTER = FILE["cluster_name"]
REGION = FILE["provider"]["region"]
ZONES = FILE["provider"]["availability_zone"].split(",")
TYPES = {name: settings["node_config"]["InstanceType"] for name, settings in FILE["available_node_types"].items()}

# Where AWS publishes the id of the image that a comment of cluster.yaml asks for, and its name.
PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
IMAGE_NAME = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04)"

# All that the launcher and the autoscaler ask of AWS; moto does not know of iam:PassRole, which RunInstances needs too.
PERMISSIONS_OF_THE_HEAD = ["ec2:CreateTags", "ec2:DescribeInstances", "ec2:RunInstances", "ec2:TerminateInstances"]
PERMISSIONS_FOR_RAY_UP = [
    *PERMISSIONS_OF_THE_HEAD,
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:CreateKeyPair",
    "ec2:CreateSecurityGroup",
    "ec2:DescribeInstanceTypes",
    "ec2:DescribeKeyPairs",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
]

SSH = """#!/bin/sh
printf '%s\\n' "ssh $*" >> "$HOME/calls"
case "$*" in
    *"command -v docker"*) echo /usr/bin/docker ;;
    *".Config.Env"*) echo '["HOME=/home/ray"]' ;;
    *"printenv HOME"*) echo /home/ray ;;
    *"/proc/meminfo"*) echo "MemAvailable: 30000000 kB" ;;
esac
"""
RSYNC = """#!/bin/sh
printf '%s\\n' "rsync $*" >> "$HOME/calls"
while [ $# -gt 2 ]; do shift; done
if [ -f "$1" ]; then cp "$1" "$HOME/$(basename "$2")"; fi
"""


# --- the account --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """An AWS account with what the comments of cluster.yaml ask for.

    Attributes:
        home: home directory of the user and of the head, with the files that `ray up` sends and the calls of `ssh`.
        ec2: client with all permissions.
        head: keys that the role of the nodes has.
        image: id of the image, as the command in the comments prints it.
    """

    home: Path
    ec2: Any
    head: dict[str, str]
    image: str


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """Return an account on a server of moto, with a home directory and keys for this process."""
    home = tmp_path_factory.mktemp("home")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(home))
        patch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_UP_enable_autoscaler_v2", raising=False)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        patch.setattr(tempfile, "tempdir", str(home))  # Ray keeps what it has found out about an account there
        patch.setattr(node_provider, "TAG_BATCH_DELAY", 0)
        patch.setattr(commands, "POLL_INTERVAL", 0)
        for setting in ("ENABLE_AMI_VALIDATION", "ENABLE_KEYPAIR_VALIDATION", "EC2_ENABLE_INSTANCE_TYPE_VALIDATION"):
            patch.setattr(f"moto.settings.{setting}", True)
        know_few_types(patch)
        for name, script in (("ssh", SSH), ("rsync", RSYNC)):
            (home / name).write_text(script)
            (home / name).chmod(0o755)
        for file in ("repository/file", ".ray/auth_token"):
            (home / file).parent.mkdir()
            (home / file).touch()
        patch.chdir(home / "repository")

        tell(endpoint, "reset")
        account, user = set_up_account(home)
        for name, value in user.items():
            patch.setenv(name.upper(), value)
        tell(endpoint, "reset-auth", "0")  # from now on the permissions hold
        yield account
        tell(endpoint, "reset-auth", "inf")
        tell(endpoint, "reset")
    server.stop()


def know_few_types(patch: pytest.MonkeyPatch) -> None:
    """Let moto know the types of cluster.yaml alone: Ray asks for all of a region, and 900 take seconds."""
    from moto.ec2.models.instance_types import InstanceTypeBackend

    known = [each for each in InstanceTypeBackend.instance_types if each["InstanceType"] in TYPES.values()]
    patch.setattr(InstanceTypeBackend, "instance_types", known)


def tell(endpoint: str, command: str, value: str = "") -> None:
    """Send a command to moto itself."""
    headers = {"Content-Type": "text/plain"}  # otherwise the server expects a form
    request = urllib.request.Request(f"{endpoint}/moto-api/{command}", value.encode(), headers, method="POST")
    urllib.request.urlopen(request, timeout=60).close()


def set_up_account(home: Path) -> tuple[Account, dict[str, str]]:
    """Return an account, and the keys of a user who may do what `ray up` does."""
    session = boto3.Session("test", "test", region_name=REGION)
    iam, ec2, ssm = (session.client(service) for service in ("iam", "ec2", "ssm"))
    ssm.put_parameter(Name="image", Value=ec2.register_image(Name=IMAGE_NAME)["ImageId"], Type="String")
    move_parameter("image", PARAMETER)

    # The instance profile has the name that cluster.yaml gives as an example.
    profile = FILE["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]["Name"]
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}
    role = iam.create_role(RoleName="nodes", AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))["Role"]
    iam.put_role_policy(RoleName="nodes", PolicyName="nodes", PolicyDocument=allowing(PERMISSIONS_OF_THE_HEAD))
    iam.create_instance_profile(InstanceProfileName=profile)
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName="nodes")
    head = session.client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="head")["Credentials"]
    everything = boto3.Session(**keys_of_a_user(iam, "administrator", ["*"]), region_name=REGION)
    account = Account(
        home=home,
        ec2=everything.client("ec2"),
        head={
            "aws_access_key_id": head["AccessKeyId"],
            "aws_secret_access_key": head["SecretAccessKey"],
            "aws_session_token": head["SessionToken"],
        },
        image=look_up_image(session),
    )
    return account, keys_of_a_user(iam, "user", PERMISSIONS_FOR_RAY_UP)


def keys_of_a_user(iam: Any, user: str, permissions: list[str]) -> dict[str, str]:
    """Make a user and return keys as boto3 names them."""
    iam.create_user(UserName=user)
    iam.put_user_policy(UserName=user, PolicyName=user, PolicyDocument=allowing(permissions))
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


def allowing(permissions: list[str]) -> str:
    """Return a policy that grants permissions."""
    statement = {"Effect": "Allow", "Action": permissions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def move_parameter(name: str, new_name: str) -> None:
    """Rename a parameter to a name below /aws, where AWS alone may write."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.ssm.models import ssm_backends

    parameters = ssm_backends[DEFAULT_ACCOUNT_ID][REGION]._parameters
    parameters[new_name] = parameters.pop(name)


def look_up_image(session: boto3.Session) -> str:
    """Return what the command in the comments of cluster.yaml prints."""
    first, second = re.search(r"# +(aws ssm .*)\\\n +# +(.*)\n", TEXT).groups()
    _aws, _service, operation, *words = shlex.split(first + second)
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert operation == "get-parameter" and options["--region"] == REGION
    answer = session.client("ssm").get_parameter(Name=options["--name"])
    return jmespath.search(options["--query"], answer)


# --- the cluster --------------------------------------------------------------------------------------------


class Head:
    """The autoscaler's part on the head: it starts workers and sets them up, with the permissions of the head."""

    def __init__(self, account: Account, bootstrap: dict[str, Any]) -> None:
        file = account.home / "configuration-of-the-head"
        provider = bootstrap["provider"] | {"aws_credentials": account.head}  # which on AWS the machine has
        # The head has the files where they came from: it has no other home, and no container.
        file.write_text(json.dumps(bootstrap | {"provider": provider, "file_mounts": FILE["file_mounts"]}))
        reader = FileConfigReader(str(file))
        self._configuration = reader.get_cached_autoscaling_config()
        self._provider = _get_node_provider(provider, bootstrap["cluster_name"], use_cache=False)
        self._launcher = NodeProviderAdapter(self._provider, reader)

    def start_worker(self) -> str:
        """Start a GPU worker and return its id."""
        before = set(self._launcher.get_non_terminated())
        self._launcher.launch({"gpu": 1}, request_id="start")
        (worker,) = self._wait_for(lambda running: running - before)
        return worker

    def end_worker(self, worker: str) -> None:
        """Give up a worker, as the autoscaler does with one that was idle for long."""
        self._launcher.terminate([worker], request_id="end")
        self._wait_for(lambda running: {worker} - running)

    def set_up(self, worker: str, address: str) -> None:
        """Install and start Ray on a worker; `address` is that of the head."""
        instance = Instance(cloud_instance_id=worker, instance_type="gpu")
        RayInstaller(self._provider, self._configuration).install_ray(instance, address)

    def _wait_for(self, seen: Callable[[set[str]], set[str]]) -> set[str]:
        """Return what `seen` says of the running nodes once it says anything."""
        deadline = time.monotonic() + 60
        while not (found := seen(set(self._launcher.get_non_terminated()))):
            errors = self._launcher.poll_errors()
            assert time.monotonic() < deadline and not errors, errors
            time.sleep(0.02)
        return found


@dataclass(frozen=True)
class Cluster:
    """What was seen of a cluster with a head and a GPU worker.

    Attributes:
        bootstrap: what `ray up` has sent to the head.
        instances: what EC2 says about the nodes, by the name of their type in cluster.yaml.
        disks: device, GiB and type of each disk of a node.
        calls: calls of `ssh` and `rsync` for a node, one after another.
        states: of all instances after `ray down`.
    """

    bootstrap: dict[str, Any]
    instances: dict[str, dict[str, Any]]
    disks: dict[str, list[tuple[str, int, str]]]
    calls: dict[str, list[str]]
    states: list[str]


@pytest.fixture(scope="module")
def cluster(account: Account) -> Cluster:
    """Start the cluster of cluster.yaml and a GPU worker, set both up, and take all down again."""
    configuration = yaml.safe_load(TEXT.replace("ami-00000000000000000", account.image))
    create_or_update_cluster(configuration, no_config_cache=True)
    bootstrap = json.loads((account.home / "ray_bootstrap_config.yaml").read_text())
    (started,) = instances(account)
    head = Head(account, bootstrap)
    worker = head.start_worker()
    head.set_up(worker, started["PrivateIpAddress"])

    nodes = {tags(node)["ray-user-node-type"]: node for node in instances(account)}
    calls = (account.home / "calls").read_text().splitlines()
    # The user reaches the head by its public address, and the head reaches the worker within the cluster.
    addresses = {"head": nodes["head"]["PublicIpAddress"], "gpu": nodes["gpu"]["PrivateIpAddress"]}
    disks = {name: disks_of(account, node) for name, node in nodes.items()}
    teardown_cluster(configuration)
    return Cluster(
        bootstrap=bootstrap,
        instances=nodes,
        disks=disks,
        calls={name: [call for call in calls if f"@{address}" in call] for name, address in addresses.items()},
        states=[node["State"]["Name"] for node in instances(account)],
    )


def instances(account: Account, *ids: str) -> list[dict[str, Any]]:
    reservations = account.ec2.describe_instances(InstanceIds=list(ids))["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


def tags(node: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in node["Tags"]}


def disks_of(account: Account, node: dict[str, Any]) -> list[tuple[str, int, str]]:
    of_the_node = {"Name": "attachment.instance-id", "Values": [node["InstanceId"]]}
    volumes = account.ec2.describe_volumes(Filters=[of_the_node])["Volumes"]
    return [(volume["Attachments"][0]["Device"], volume["Size"], volume["VolumeType"]) for volume in volumes]


# --- what AWS is asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["head", "gpu"])
def test_a_node_has_the_type_image_profile_and_disk_of_the_file(account: Account, cluster: Cluster, name: str) -> None:
    node, settings = cluster.instances[name], FILE["available_node_types"][name]["node_config"]
    assert (node["InstanceType"], node["ImageId"]) == (TYPES[name], account.image)
    assert node["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{settings['IamInstanceProfile']['Name']}")
    assert "InstanceLifecycle" not in node  # on demand, not spot
    # The one disk is the root of the image, made larger.
    assert cluster.disks[name] == [(node["RootDeviceName"], 150, "gp3")]


@pytest.mark.parametrize("name", ["head", "gpu"])
def test_a_node_is_in_the_first_zone_and_reached_with_a_key_that_ray_has_made(cluster: Cluster, name: str) -> None:
    node = cluster.instances[name]
    assert node["Placement"]["AvailabilityZone"] == ZONES[0]
    assert node["KeyName"] == f"ray-autoscaler_{REGION}"
    key = {"head": f"/.ssh/{node['KeyName']}.pem", "gpu": "/ray_bootstrap_key.pem"}[name]
    assert cluster.calls[name] and all(f"{key} " in call and " ubuntu@" in call for call in cluster.calls[name])


@pytest.mark.parametrize(("name", "kind"), [("head", "head"), ("gpu", "worker")])
def test_a_node_is_tagged_with_its_cluster_kind_and_type(cluster: Cluster, name: str, kind: str) -> None:
    expected = {
        "Name": f"ray-{CLUSTER}-{kind}",
        "ray-cluster-name": CLUSTER,
        "ray-node-type": kind,
        "ray-user-node-type": name,
        "ray-node-status": "up-to-date",  # set up without an error
    }
    assert expected.items() <= tags(cluster.instances[name]).items()


def test_only_ssh_comes_in_from_outside_and_nodes_reach_each_other(account: Account, cluster: Cluster) -> None:
    (group,) = {group["GroupId"] for node in cluster.instances.values() for group in node["SecurityGroups"]}
    (described,) = account.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    rules = {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"), source)
        for rule in described["IpPermissions"]
        for sources in ("IpRanges", "Ipv6Ranges", "PrefixListIds", "UserIdGroupPairs")
        for source in [each.get("CidrIp") or each.get("GroupId") for each in rule[sources]]
    }
    assert rules == {("tcp", 22, 22, "0.0.0.0/0"), ("-1", None, None, group)}


def test_the_types_have_the_processors_that_the_file_names_and_are_offered_in_its_zones(account: Account) -> None:
    for name, settings in FILE["available_node_types"].items():
        (described,) = account.ec2.describe_instance_types(InstanceTypes=[TYPES[name]])["InstanceTypes"]
        gpus = sum(gpu["Count"] for gpu in described.get("GpuInfo", {}).get("Gpus", []))
        assert (described["VCpuInfo"]["DefaultVCpus"], gpus) == (
            settings["resources"]["CPU"],
            settings["resources"].get("GPU", 0),
        )
        offers = account.ec2.describe_instance_type_offerings(
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [TYPES[name]]}]
        )["InstanceTypeOfferings"]
        assert set(ZONES) <= {offer["Location"] for offer in offers}


def test_ray_down_terminates_all_nodes_rather_than_stop_them(cluster: Cluster) -> None:
    assert cluster.states == ["terminated", "terminated"]


def test_the_head_terminates_an_idle_worker_rather_than_stop_it(account: Account, cluster: Cluster) -> None:
    head = Head(account, cluster.bootstrap)
    head.end_worker(worker := head.start_worker())
    assert instances(account, worker)[0]["State"]["Name"] == "terminated"


def test_a_worker_is_a_spot_instance_once_its_line_is_no_comment(account: Account, cluster: Cluster) -> None:
    file = yaml.safe_load(TEXT.replace("# InstanceMarketOptions", "InstanceMarketOptions"))
    options = file["available_node_types"]["gpu"]["node_config"].pop("InstanceMarketOptions")
    assert file == FILE  # nothing else is different
    bootstrap = deepcopy(cluster.bootstrap)
    bootstrap["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"] = options
    (worker,) = instances(account, Head(account, bootstrap).start_worker())
    assert worker["InstanceLifecycle"] == "spot"


def test_the_next_zone_is_tried_when_one_has_no_capacity(
    account: Account, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models.instances import InstanceBackend

    run_instances, full = InstanceBackend.run_instances, cluster.instances["gpu"]["SubnetId"]

    def run_elsewhere(self: InstanceBackend, *arguments: Any, **options: Any) -> Any:
        if options["subnet_id"] == full:
            raise EC2ClientError("InsufficientInstanceCapacity", "We currently do not have sufficient capacity.")
        return run_instances(self, *arguments, **options)

    monkeypatch.setattr(InstanceBackend, "run_instances", run_elsewhere)
    (worker,) = instances(account, Head(account, cluster.bootstrap).start_worker())
    assert worker["Placement"]["AvailabilityZone"] == ZONES[1]


def test_the_nodes_have_no_other_permissions_than_those_they_need(account: Account, cluster: Cluster) -> None:
    # They were enough: `Head` has started and ended workers with them.
    ec2 = boto3.client("ec2", region_name=REGION, **account.head)
    with pytest.raises(ClientError, match="not authorized"):
        ec2.describe_key_pairs()


# --- how a node is set up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("head", "head"), ("gpu", "worker")])
def test_a_node_gets_the_files_then_its_container_then_the_packages_then_ray(
    cluster: Cluster, name: str, kind: str
) -> None:
    of_the_file = [*FILE["setup_commands"], *FILE[f"{kind}_setup_commands"], *FILE[f"{kind}_start_ray_commands"]]
    steps = [
        *[f":/tmp/ray_tmp_mount/{CLUSTER}{mount}" for mount in FILE["file_mounts"]],
        f" {FILE['docker'][f'{kind}_image']} bash",
        *[command.replace("~", "/home/ray") for command in of_the_file],
    ]
    seen = [step for call in cluster.calls[name] for step in steps if step in call]
    # A worker runs `setup_commands` twice, because Ray puts them before those for workers on the user's machine and
    # again on the head. The second run finds all installed.
    assert list(dict.fromkeys(seen)) == steps
