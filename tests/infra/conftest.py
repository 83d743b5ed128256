"""A mocked AWS with the stack of infra/aws/storage.yaml, for the tests that need one."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

ROOT = Path(__file__).parents[2]
BUCKET = "pets-of-2026"


@pytest.fixture(scope="package")
def stack() -> Iterator[pytest.MonkeyPatch]:
    """infra/aws/storage.yaml deployed to a moto server on loopback; the environment leads every AWS client there."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        vpc = boto3.Session().client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
        values = {"BucketName": BUCKET, "VpcId": vpc, "SshFrom": "203.0.113.7/32"}
        boto3.Session().client("cloudformation").create_stack(
            StackName="batch-orchestrator",
            TemplateBody=(ROOT / "infra" / "aws" / "storage.yaml").read_text(),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        yield patch
    server.stop()
