"""infra/Dockerfile: linted, and its steps replayed in a fresh virtual environment."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from conftest import ROOT

FILE = ROOT / "infra" / "Dockerfile"


def test_the_linter_finds_nothing() -> None:
    """hadolint, which looks into the shell lines too."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), str(FILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_pinned_and_runs_as_nobody_special() -> None:
    """A base image by its full version, constraints for every package, a user that is not root, no secret."""
    text = FILE.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    minimum = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, re.findall(r"\d+", bases[0])[:2])) >= tuple(map(int, re.findall(r"\d+", minimum)))
    assert "--constraint constraints.txt '.[gpu]'" in text
    assert text.rindex("USER 1000") > text.rindex("FROM ")
    assert not re.search(r"(?i)\b(ARG|ENV)\b.*(token|secret|password|key)", text)


def test_what_it_copies_makes_a_package_that_needs_no_working_directory(tmp_path: Path) -> None:
    """Only the files that it copies, installed as it installs them; the plan is made from an empty folder."""
    source, home = tmp_path / "src", tmp_path / "home"
    source.mkdir()
    home.mkdir()
    for line in re.findall(r"^COPY (?!--from)(.+)$", FILE.read_text(), re.MULTILINE):
        *names, _ = line.split()
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").glob("python3*/site-packages"))
    # the pinned packages are those of this environment: to fetch 3 GB anew would prove no more
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-compile", "--no-deps", "--no-build-isolation", "--constraint", str(source / "constraints.txt")]
    (site / "pinned.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    subprocess.run([*pip, f"{source}[gpu]"], check=True, cwd=source)
    shutil.rmtree(source)
    line = [str(python), "-P", "-m", "orchestrator.grid", "--plan"]
    done = subprocess.run(line, cwd=home, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "shirts: 8 points, 4 trials" in done.stdout
    where = subprocess.run(
        [str(python), "-P", "-c", "import orchestrator; print(orchestrator.__file__)"],
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    assert sysconfig.get_path("purelib") not in where.stdout


def test_the_context_holds_what_it_copies_and_nothing_else() -> None:
    """infra/Dockerfile.dockerignore leaves out all but that: no runs, no keys, no history."""
    lines = Path(f"{FILE}.dockerignore").read_text().splitlines()
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", FILE.read_text(), re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
