"""AWS: credentials, region and endpoint as AWS's own tools find them, and listings of keys that obstore refuses."""

import contextlib
import os
import urllib.parse
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.store.hints import one_line

# botocore renews credentials with under 10 minutes left, so a copy can be used for 9 minutes
CREDENTIAL_TTL = timedelta(minutes=9)


@contextlib.contextmanager
def _session(uri: str) -> Iterator[Any]:
    import boto3  # here: a run on folders needs no boto3, whose import takes a third of a second
    from botocore.exceptions import BotoCoreError

    try:
        # boto3 reads AWS_DEFAULT_REGION alone; AWS's other tools read AWS_REGION first
        yield boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
    except (BotoCoreError, ValueError) as error:
        hint = "check AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL and the AWS config file"
        raise BadInput(f"{uri}: the AWS settings do not work: {one_line(str(error))}; {hint}") from None


def aws_endpoint_and_region(uri: str) -> tuple[str | None, str]:
    with _session(uri) as session:
        endpoint = session.client("s3").meta.endpoint_url
    host = urllib.parse.urlsplit(endpoint).hostname or ""
    amazon = host.startswith("s3.") and host.endswith(".amazonaws.com")
    return None if amazon else endpoint, session.region_name or "us-east-1"


def aws_credentials(uri: str) -> Any:
    """For obstore, which renews them here; None where there are none, so that requests are sent unsigned."""
    from obstore.auth.boto3 import Boto3CredentialProvider

    with _session(uri) as session:
        return Boto3CredentialProvider(session, ttl=CREDENTIAL_TTL) if session.get_credentials() else None


def list_plainly(
    uri: str, bucket: str, below: str, endpoint: str | None, region: str | None
) -> Iterator[dict[str, Any]]:
    """path, size and e_tag of every object whose key begins so, whatever the key is. Raises BadInput."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    with _session(uri) as session:
        config = None if session.get_credentials() else Config(signature_version=UNSIGNED)
        client = session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
        try:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below):
                for each in page.get("Contents", ()):
                    yield {"path": each["Key"], "size": each["Size"], "e_tag": each["ETag"]}
        except (BotoCoreError, ClientError) as error:
            raise BadInput(f"{uri}: list failed: {one_line(str(error))}") from None
