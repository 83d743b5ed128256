"""infra/aws/storage.yaml: linted, deployed to a mocked AWS, and its policy compared with the calls really made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from cfnlint.decode import cfn_yaml
from images import class_folder, fill
from proxy import Proxy
from seaweedfs import Seaweedfs

from orchestrator.store import open_store

TEMPLATE = Path(__file__).parents[2] / "infra" / "aws" / "storage.yaml"
BUCKET = "pets-of-2026"


def test_the_template_passes_the_linter() -> None:
    """cfn-lint, with AWS's own schemas, finds nothing."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("cfn-lint")), str(TEMPLATE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_bucket_is_private_encrypted_and_tidies_up(stack: pytest.MonkeyPatch) -> None:
    """As S3 tells it after the deployment; what moto leaves out of a template, as the template has it."""
    s3 = boto3.Session().client("s3")
    resources = cfn_yaml.loads(TEMPLATE.read_text())["Resources"]
    block = resources["Bucket"]["Properties"]["PublicAccessBlockConfiguration"]
    assert block == dict.fromkeys(
        ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True
    )
    (deny,) = resources["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    assert (deny["Effect"], deny["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    rules = {rule["Id"]: rule for rule in resources["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]}
    assert {rule["Status"] for rule in rules.values()} == {"Enabled"}
    assert rules["aborted-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert rules["old-checkpoints"]["TagFilters"] == [{"Key": "kind", "Value": "checkpoint"}]
    assert rules["old-checkpoints"]["ExpirationInDays"] == {"Ref": "CheckpointDays"}


def test_the_door_is_open_to_one_range_and_to_the_cluster_alone(stack: pytest.MonkeyPatch) -> None:
    """SSH from the range given; everything else only from the group itself."""
    (group,) = (
        boto3.Session()
        .client("ec2")
        .describe_security_groups(Filters=[{"Name": "group-name", "Values": ["batch-orchestrator"]}])["SecurityGroups"]
    )
    opened = {
        (rule["IpProtocol"], rule.get("FromPort"), *(r["CidrIp"] for r in rule["IpRanges"]))
        for rule in group["IpPermissions"]
        if rule["IpRanges"]
    }
    assert opened == {("tcp", 22, "203.0.113.7/32")}
    inside = [pair["GroupId"] for rule in group["IpPermissions"] for pair in rule["UserIdGroupPairs"]]
    assert inside == [group["GroupId"]]


def policy(role: str) -> dict[str, set[str]]:
    """Action -> resources that the role's attached policies allow."""
    iam = boto3.Session().client("iam")
    allowed: dict[str, set[str]] = {}
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        arn = attached["PolicyArn"]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        document = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
        for statement in document["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            for action in actions:
                allowed.setdefault(action, set()).add(statement["Resource"])
    return allowed


def action(method: str, path: str, tagged: bool) -> set[str]:
    """What S3 wants a caller to be allowed for this request."""
    in_bucket = path.strip("/").count("/") == 0
    if method == "GET" and in_bucket:
        return {"s3:ListBucket"}
    names = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
    return {names[method]} | ({"s3:PutObjectTagging"} if tagged else set())


def test_the_role_may_do_what_the_program_does_and_nothing_else(
    stack: pytest.MonkeyPatch, seaweedfs: Seaweedfs, tmp_path: Path
) -> None:
    """Every request of a run from bucket to bucket and of a reader of its board, against the worker's policy."""
    allowed = policy("batch-orchestrator-worker")
    assert set(allowed) == set(policy("batch-orchestrator-head"))
    assert {r for resources in allowed.values() for r in resources} == {
        f"arn:aws:s3:::{BUCKET}",
        f"arn:aws:s3:::{BUCKET}/*",
    }
    with Proxy(seaweedfs.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in {**seaweedfs.env(), "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            patch.setenv(name, value)
        patch.setenv("ORCHESTRATOR_CHECKPOINT_TAG", "kind=checkpoint")
        patch.setenv("ORCHESTRATOR_CACHE_DIR", str(tmp_path / "cache"))
        boto3.Session().client("s3", endpoint_url=seaweedfs.endpoint).create_bucket(Bucket=BUCKET)
        fill(open_store(f"s3://{BUCKET}/pets"), class_folder({"cat": 12, "dog": 12}))
        line = ["--data", f"s3://{BUCKET}/pets", "--output", f"s3://{BUCKET}/runs", "--set", "data.image_size=16"]
        grid = [sys.executable, "-m", "orchestrator.grid", *line]
        small = ["--set", "grid={batch_size: [8], epochs: [2]}"]
        subprocess.run([*grid, *small], check=True, cwd=tmp_path, capture_output=True, timeout=300)
        board = [sys.executable, "-m", "orchestrator.leaderboard", f"s3://{BUCKET}/runs/shirts"]
        subprocess.run(board, check=True, cwd=tmp_path, capture_output=True, timeout=300)
        (checkpoint,) = (
            boto3.Session().client("s3").list_objects_v2(Bucket=BUCKET, Prefix="runs/shirts/checkpoints/")["Contents"]
        )
        made = {
            found
            for method, path in proxy.requests
            for found in action(method, path, method == "PUT" and "/checkpoints/" in path)
        }
        tags = boto3.Session().client("s3").get_object_tagging(Bucket=BUCKET, Key=checkpoint["Key"])["TagSet"]
    assert made == set(allowed)
    assert tags == [{"Key": "kind", "Value": "checkpoint"}]


def test_a_grid_runs_on_the_deployed_bucket_as_the_deployed_role(stack: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the keys that the worker's role gives for an hour, from images in the bucket to a board in it."""
    role = boto3.Session().client("iam").get_role(RoleName="batch-orchestrator-worker")["Role"]["Arn"]
    keys = boto3.Session().client("sts").assume_role(RoleArn=role, RoleSessionName="worker")["Credentials"]
    fill(open_store(f"s3://{BUCKET}/few"), class_folder({"cat": 12, "dog": 12}))
    env = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
        "ORCHESTRATOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    line = ["--data", f"s3://{BUCKET}/few", "--output", f"s3://{BUCKET}/runs", "--name", "deployed", "--json"]
    grid = [sys.executable, "-m", "orchestrator.grid", *line, "--set", "data.image_size=16"]
    small = ["--set", "grid={batch_size: [8], epochs: [1]}"]
    done = subprocess.run([*grid, *small], env=env, cwd=tmp_path, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in json.loads(done.stdout)["rows"]] == ["ok"]
    assert "leaderboard.parquet" in {o.key for o in open_store(f"s3://{BUCKET}/runs/deployed").list()}
