"""infra/aws/cluster.yaml: Ray's schema, what `ray up` makes of it on a mocked AWS, and what its autoscaler decides."""

import copy
import re
import subprocess
from typing import Any

import boto3
import pytest
import yaml
from conftest import ROOT
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

FILE = ROOT / "infra" / "aws" / "cluster.yaml"
IMAGE = "ami-12c6146b"  # moto has a few; the parameter that names the newest is AWS's own


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The file as it stands."""
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def bootstrapped(written: dict[str, Any], stack: pytest.MonkeyPatch, tmp_path_factory: Any) -> dict[str, Any]:
    """The settings after `ray up` has looked their names up in AWS; an image of moto's stands in for the newest."""
    home = tmp_path_factory.mktemp("home")
    stack.setenv("HOME", str(home))  # `ray up` keeps a key pair below it
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("0" * 64)
    config = copy.deepcopy(written)
    for node_type in config["available_node_types"].values():
        node_type["node_config"]["ImageId"] = IMAGE
    return _bootstrap_config(config, no_config_cache=True)


def test_rays_own_schema_and_validation_take_the_file(written: dict[str, Any]) -> None:
    """As `ray up` checks it before it asks AWS for anything."""
    config = prepare_config(copy.deepcopy(written))
    validate_config(config)
    assert config["available_node_types"]["spot"]["min_workers"] == 0


def test_no_key_and_no_open_port_stands_in_it(written: dict[str, Any]) -> None:
    """Instance profiles instead of keys, token authentication on every start, the dashboard on loopback."""
    starts = [*written["head_start_ray_commands"], *written["worker_start_ray_commands"]]
    assert all(line.startswith(". ~/.cluster;") for line in starts)
    assert any("RAY_AUTH_MODE=token" in line for line in written["setup_commands"])
    assert any("--dashboard-host=127.0.0.1" in line for line in starts)
    for node_type in written["available_node_types"].values():
        node = node_type["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        assert set(node["IamInstanceProfile"]) == {"Name"}
    assert "0.0.0.0" not in FILE.read_text()
    assert not re.search(r"AKIA|aws_secret|aws_access", FILE.read_text(), re.IGNORECASE)


def test_the_heads_labels_say_what_the_workers_are(written: dict[str, Any]) -> None:
    """A driver that finds no worker plans with them: as many nodes, and cores and GPUs of each, as may come."""
    types = written["available_node_types"]
    head, workers = types["head"], [types["spot"], types["on-demand"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    for worker in workers:
        assert head["labels"] == {
            "worker-nodes": str(written["max_workers"]),
            "worker-cpus": str(worker["resources"]["CPU"]),
            "worker-gpus": str(worker["resources"]["GPU"]),
            "worker-gpu-mb": "15000",  # of a T4, which every g4dn has
        }
        assert worker["max_workers"] == written["max_workers"]
        assert worker["labels"]["node-type"] == worker["node_config"]["InstanceType"]
    assert [worker["node_config"].get("InstanceMarketOptions") for worker in workers] == [{"MarketType": "spot"}, None]


def test_ray_up_takes_the_stacks_door_as_it_is(bootstrapped: dict[str, Any], stack: pytest.MonkeyPatch) -> None:
    """The security group is the stack's, for every node, and no rule was added to it: Ray's own would admit all."""
    (group,) = (
        boto3.Session()
        .client("ec2")
        .describe_security_groups(Filters=[{"Name": "group-name", "Values": ["batch-orchestrator"]}])["SecurityGroups"]
    )
    ranges = [r["CidrIp"] for rule in group["IpPermissions"] for r in rule["IpRanges"]]
    assert ranges == ["203.0.113.7/32"]
    for node_type in bootstrapped["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"] == [group["GroupId"]]
    profiles = {
        p["InstanceProfileName"] for p in boto3.Session().client("iam").list_instance_profiles()["InstanceProfiles"]
    }
    named = {t["node_config"]["IamInstanceProfile"]["Name"] for t in bootstrapped["available_node_types"].values()}
    assert named == profiles


def test_the_head_may_do_what_its_autoscaler_does_and_nothing_else(
    bootstrapped: dict[str, Any], stack: pytest.MonkeyPatch
) -> None:
    """A worker is started, found, tagged and ended, and each call to EC2 is compared with the head's own policy."""
    provider = AWSNodeProvider(bootstrapped["provider"], bootstrapped["cluster_name"])
    calls: set[str] = set()
    for resource in (provider.ec2, provider.ec2_fail_fast):
        resource.meta.client.meta.events.register("before-call.ec2", lambda model, **_: calls.add(f"ec2:{model.name}"))
    worker = bootstrapped["available_node_types"]["spot"]["node_config"]
    tags = {"ray-node-kind": "worker", "ray-user-node-type": "spot", "ray-node-status": "uninitialized"}
    provider.create_node(worker, tags, 1)
    (node,) = provider.non_terminated_nodes({"ray-node-kind": "worker"})
    assert provider.is_running(node) or provider.internal_ip(node)
    provider.set_node_tags(node, {"ray-node-status": "up-to-date"})
    provider.terminate_node(node)
    assert provider.non_terminated_nodes({"ray-node-kind": "worker"}) == []
    document = (
        boto3.Session()
        .client("iam")
        .get_role_policy(RoleName="batch-orchestrator-head", PolicyName="autoscaler")["PolicyDocument"]
    )
    document = yaml.safe_load(document) if isinstance(document, str) else document  # moto gives Python's own text
    allowed = {
        a for s in document["Statement"] for a in (s["Action"] if isinstance(s["Action"], list) else [s["Action"]])
    }
    assert calls == {action for action in allowed if action.startswith("ec2:")}
    # what RunInstances itself makes use of: the worker's role, the image's parameter, the role of the spot service
    assert allowed - calls == {"iam:PassRole", "ssm:GetParameters", "iam:CreateServiceLinkedRole"}


@pytest.mark.parametrize(("missing", "first"), [({}, "spot"), ({"spot": 0.0}, "on-demand")])
def test_spot_first_and_on_demand_where_there_is_none(
    written: dict[str, Any], missing: dict[str, float], first: str
) -> None:
    """Three trials wait for a GPU each: Ray's autoscaler starts three nodes of the type that is to be had."""
    types = AutoscalingConfig(copy.deepcopy(written), skip_content_hash=True).get_node_type_configs()
    waiting = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"CPU": 1, "GPU": 1})] * 3)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=8,
        resource_requests=waiting,
        cloud_resource_availabilities=missing,
        recoverable_resource_availabilities=missing,
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    assert {launch.instance_type: launch.count for launch in reply.to_launch} == {first: 3}


def test_each_command_is_a_shells(written: dict[str, Any]) -> None:
    """bash parses every line that runs on a node."""
    names = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    for line in [line for name in names for line in written[f"{name}_commands"]]:
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0, line
