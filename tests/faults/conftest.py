"""A bucket behind a proxy that stages faults, and limits that make giving up a matter of seconds."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from proxy import Proxy
from seaweedfs import Seaweedfs

from orchestrator import store


@pytest.fixture
def proxy(seaweedfs: Seaweedfs) -> Iterator[Proxy]:
    """In front of the real server; passes everything on until a test sets its rule."""
    with Proxy(seaweedfs.endpoint) as running:
        yield running


@pytest.fixture
def faulty_bucket(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a fresh bucket seen through the proxy, with three retries within ten seconds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(store, "PATIENT", {"timeout": "10s", "read_timeout": "1s", "connect_timeout": "1s"})
    waits = {"init_backoff": timedelta(seconds=0.02), "max_backoff": timedelta(seconds=0.1), "base": 2}
    limits = {"max_retries": 3, "retry_timeout": timedelta(seconds=10), "backoff": waits}
    monkeypatch.setattr(store, "PATIENT_RETRY", limits)
    return bucket
