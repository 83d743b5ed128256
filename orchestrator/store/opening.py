"""Opening: an address -> its store. Makes no request and writes nothing."""

from __future__ import annotations

import os
import re
import urllib.parse

from orchestrator.errors import BadInput
from orchestrator.store.aws import aws_endpoint_and_region
from orchestrator.store.bucket import Bucket
from orchestrator.store.folder import Folder, open_sample
from orchestrator.store.interface import Store, unaddressable

FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, sample://NAME, or a folder"


def open_store(uri: str, *, create: bool = False) -> Store:
    """Open an object store, a folder or a sample, without a request and without writing anything.

    create: A folder may be missing; the first write makes it.

    Raises:
        BadInput: `uri` has no known form, its folder is missing, or the settings for it do not work.
    """
    scheme, slashes, rest = uri.partition(":/")
    if not slashes or "/" in scheme:
        return _open_folder(uri, os.path.abspath(os.path.expanduser(uri)), create)
    scheme, known = scheme.lower(), rest.startswith("/")
    if scheme == "file" and rest.startswith("//"):
        return _open_folder(uri, os.path.abspath(urllib.parse.unquote(rest[1:])), create)
    if known and scheme == "sample":
        return open_sample(rest[1:].rstrip("/"))
    if known and scheme in ("s3", "gs", "az"):
        bucket, _, prefix = rest[1:].partition("/")
        if not re.fullmatch(r"[\w.-]+", bucket):
            raise BadInput(f"an address must be {FORMS}; got {scheme}:// with no valid bucket name")
        return _open_bucket(scheme, bucket, prefix.strip("/"))
    # the rest of the address is not shown: it might hold a password
    raise BadInput(f"an address must be {FORMS}; got one that begins with {scheme + slashes!r}")


def _open_folder(uri: str, root: str, create: bool) -> Folder:
    if not uri:
        raise BadInput(f"an address must be {FORMS}; got nothing")
    folder = Folder(root, root, create)
    folder.check()
    return folder


def _open_bucket(scheme: str, bucket: str, prefix: str) -> Bucket:
    uri = f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    if reason := unaddressable(prefix, hidden=True) if prefix else None:
        raise BadInput(f"{uri!r}: the prefix {reason}")
    endpoint, region = aws_endpoint_and_region(uri) if scheme == "s3" else (None, None)
    store = Bucket(uri, endpoint, region)
    _ = store._client  # finds the credentials now, so that an error about them comes from here
    return store
