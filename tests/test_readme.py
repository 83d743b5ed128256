"""README: every command and every block of code in it works, in order, in a fresh clone.

What cannot be run here is only parsed, and its options are looked up in the command's own help: lines with something to
fill in (BUCKET, HOST), the sections on clusters, and servers, which never end.
"""

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from images import class_folder, encoded, fill, picture

from orchestrator.spec.code import read_code
from orchestrator.spec.reading import load_spec
from orchestrator.spec.sections import Augment, Backbone, Budget, Data, Notify, Race, Resources, Sample, Spec, Train
from orchestrator.store import open_store

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CLUSTERS = ("### On AWS", "### On Kubernetes", "### On any other Ray cluster")
TO_FILL_IN = re.compile(r"\b(BUCKET|HOST|REGISTRY|VPC-ID|YOUR-IP)\b")
SERVERS = ("tensorboard",)
NOT_PYTHON = ("aws", "docker", "kubectl", "cp", "source")  # here, whether or not they are installed
_PARTS = re.compile(r"^(#+ [^\n]*)$|^```(\w*)\n(.*?)^```$|^\| `(python -m [^`\n]+)` \|", re.MULTILINE | re.DOTALL)


def parts() -> Iterator[tuple[str, str, str]]:
    """(heading above, language, text) of every block; a table of commands is shell line by line."""
    heading = ""
    for found in _PARTS.finditer(TEXT):
        title, language, block, command = found.groups()
        heading = title or heading
        if command or block:
            yield heading, "sh" if command else language, command or block


def blocks(language: str) -> list[str]:
    return [text for _, each, text in parts() if each == language]


def commands(text: str) -> list[str]:
    return text.replace("\\\n", " ").strip().splitlines()


def is_run(heading: str, command: str) -> bool:
    goes_on = command.split()[0] in SERVERS or command.endswith("--serve")
    return not (heading in CLUSTERS or TO_FILL_IN.search(command) or goes_on)


COMMANDS = [(heading, line) for heading, language, text in parts() if language == "sh" for line in commands(text)]


@cache
def helps(*words: str) -> str:
    """What a command says of its options."""
    program, option = list(words), "--helpfull" if words == ("tensorboard",) else "--help"
    program[0] = sys.executable if words[0] == "python" else str(Path(sys.executable).with_name(words[0]))
    done = subprocess.run(
        [*program, option],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "COLUMNS": "200", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return done.stdout


@pytest.mark.parametrize("command", dict.fromkeys(line for _, line in COMMANDS))
def test_a_command_has_the_options_that_it_is_given(command: str) -> None:
    """Targets of make and files of infra/ exist; of programs that are not Python's the line is parsed alone."""
    words = shlex.split(command)
    for word in words:
        if word.startswith(("infra/", "jobs/", "docs/")):
            assert (ROOT / word).exists(), word
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
        assert all(re.search(rf"^{word.partition('=')[0]} \?=", makefile, re.MULTILINE) for word in words[2:])
    elif words[0] not in NOT_PYTHON:
        program = words[: 3 if words[0] == "python" else 1 if words[0] in SERVERS else 2]
        for option in (word for word in words[len(program) :] if re.match(r"--?[a-z]", word)):
            assert re.search(rf"(?<![\w-]){option}\b", helps(*program)), f"{' '.join(program)} has no {option}"


@pytest.mark.parametrize("command", dict.fromkeys(line for _, line in COMMANDS))
def test_a_command_can_be_pasted_into_zsh_too(command: str) -> None:
    """There brackets outside quotes are patterns, and a comment is none: it would be more arguments."""
    assert not re.search(r"[][{}()*?!;&|<`#~^$]", re.sub(r"\"[^\"$`!]*\"", "", command))
    assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0


def test_what_is_not_run_is_the_exception() -> None:
    """Most of the commands are, so that a new heading or a capital letter does not empty this test."""
    ran = [line for heading, line in COMMANDS if is_run(heading, line)]
    assert len(ran) > len(COMMANDS) / 2
    assert {"make grid", "source .venv/bin/activate", "python -m orchestrator.grid pets.yaml"} <= set(ran)
    assert {heading for heading, _ in COMMANDS} > set(CLUSTERS[:2])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as it is cloned, set up by the packages that are installed here, with a user's own images."""
    folder = tmp_path_factory.mktemp("clone")
    named = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    for name in filter(None, named.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python3.*/site-packages")
    (packages / "these.pth").write_text("\n".join([str(folder), *site.getsitepackages()]))
    pip = venv / "bin" / "pip"
    pip.write_text(f"#!{venv}/bin/python\nfrom pip._internal.cli.main import main\n\nraise SystemExit(main())\n")
    pip.chmod(0o755)
    (venv / ".ready").touch()  # what `make setup` leaves
    size = {"height": 64, "width": 64}
    fill(open_store(str(folder / "pets"), create=True), class_folder({"cat": 20, "dog": 20}, **size))
    fill(open_store(str(folder / "new"), create=True), {"a.png": encoded(picture(1, 64, 64))})
    (folder / "photo.jpg").write_bytes(encoded(picture(2, 64, 64), "JPEG"))
    return folder


def script() -> str:
    """All that the README says to type, and the files that it says to write, in its order."""
    lines = ["trap 'echo \"README: $BASH_COMMAND\" >&2' ERR", "set -e"]
    for heading, language, text in parts():
        file = re.match(r"# (\w+\.\w+)\n", text)
        if language == "sh":
            lines += [line for line in commands(text) if is_run(heading, line)]
        elif language in ("yaml", "python") and file:
            lines += [f"cat > {file[1]} <<'END'\n{text}END"]
        elif language == "python":
            lines += [f"python - <<'END'\n{text}END"]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_works_in_a_fresh_clone(clone: Path, short: Path) -> None:
    """Every command in one bash, top to bottom, with nothing in the environment that points to the packages here."""
    path = [each for each in os.environ["PATH"].split(":") if Path(each) != Path(sys.executable).parent]
    # ARGS given to `make test-all` would reach the README's `make grid` too, by way of MAKEFLAGS
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "ARGS", "SPEC")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env |= {"PATH": ":".join(path), "TMPDIR": str(short), "PIP_NO_INDEX": "1"}
    env |= {"ORCHESTRATOR_CACHE_DIR": str(clone / "cache")}
    with (clone / "said").open("w+") as said:
        done = subprocess.run(
            ["bash", "-c", script()],
            cwd=clone,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            timeout=1700,
        )
        said.seek(0)
        text = said.read()
    assert done.returncode == 0, text[-3000:]
    assert {path.name for path in (clone / "runs").iterdir()} == {"shirts", "pets", "wide"}
    for run in ("shirts", "pets", "wide"):
        assert (clone / "runs" / run / "report.html").exists()
        assert (clone / "runs" / run / "models" / "best.keras").exists()
    assert "before you type these: source .venv/bin/activate" in text
    assert f"{ROOT}/orchestrator" not in text


def test_the_specs_are_valid() -> None:
    """The first is the one that runs without a spec."""
    default, *others = blocks("yaml")
    assert (ROOT / "orchestrator" / "default.yaml").read_text().endswith(default)
    assert [load_spec(each).name for each in others] == ["pets", "heads", "ranges", "race"]


def test_every_field_of_a_spec_is_in_its_table() -> None:
    """Under its own name, beside the others of its section."""
    table = " ".join(re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE))
    for section in (Spec, Data, Augment, Backbone, Train, Sample, Race, Resources, Budget, Notify):
        for field in section.model_fields:
            assert re.search(rf"[`.]{field}\b", table), field


def test_the_board_shown_has_the_columns_of_a_board() -> None:
    """Those that a finished run prints."""
    from orchestrator.board.table import COLUMNS

    (shown,) = (text for text in blocks("") if text.startswith("rank"))
    assert set(shown.splitlines()[0].split()) <= {*COLUMNS, "batch_size", "epochs", "dropout"}


@pytest.mark.parametrize("library", ["pandas", "duckdb"])
def test_the_examples_read_a_finished_run(library: str, shirts: Path) -> None:
    """Both answer with the mean, or the best, of each batch size."""
    (block,) = (block for block in blocks("python") if f"import {library}" in block)
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=shirts.parents[1], text=True, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\b32\b.*0\.\d", done.stdout)
    assert re.search(r"\b64\b.*0\.\d", done.stdout)


def test_the_models_are_ones_that_a_grid_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of the README, with the axis that it names."""
    (block,) = (block for block in blocks("python") if "def wide" in block)
    (tmp_path / "my_readme_model.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_code("my_readme_model:wide", ["width"]).defaults == {"width": 32}
