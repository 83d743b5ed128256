"""hints: what a message tells people to type can be pasted into bash and zsh as it stands."""

import ast
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator
from orchestrator.board.estimates import configurations
from orchestrator.board.sentences import sentences
from orchestrator.board.verdict import judge

SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]
SPECIAL = re.compile(r"[][{}()*?!;&|<>$`#~^ ]")  # what bash or zsh would take as something other than itself


def arguments(shell: str, typed: str) -> list[str]:
    """What a command is given when a person types this after its name."""
    code = f"{sys.executable} -c 'import sys; print(*sys.argv[1:], sep=chr(10))' {typed}"
    done = subprocess.run([shell, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def messages(file: Path) -> list[tuple[int, str]]:
    """(line, text) of every string in a file but its docstrings; what an f-string fills in stands as {}."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found.append((node.lineno, text))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | parts):
            found.append((node.lineno, node.value))
    return found


@pytest.mark.parametrize("shell", SHELLS)
def test_the_seeds_that_a_verdict_asks_for_are_one_argument(shell: str) -> None:
    """A list has brackets and spaces: in quotes it reaches the command whole."""
    rows = [
        {"status": "ok", "batch_size": size, "seed": 0, "val_accuracy": size / 100, "train_s": 1.0}
        | {"trial_id": str(size), "epochs_trained": 1}
        for size in (8, 16)
    ]
    verdict = judge(configurations(rows, ["batch_size"], "val_accuracy"), "val_accuracy", {})
    (hint,) = (line for line in sentences(verdict) if "--set" in line)
    assert arguments(shell, hint[hint.index("--set") :]) == ["--set", "seeds=[0, 1, 2]"]


def test_every_setting_in_a_message_is_one_word_or_in_quotes() -> None:
    """In bash and in zsh, which takes an unquoted bracket for a pattern and refuses where nothing matches."""
    found = []
    for file in sorted(Path(orchestrator.__file__).parent.rglob("*.py")):
        for line, text in messages(file):
            for value in re.findall(r"--set (\"[^\"]*\"|\S+)", text):
                if "=" in value:
                    found.append(value)
                    assert value.startswith('"') or not SPECIAL.search(value), f"{file.name}:{line}: --set {value}"
    assert '"seeds={}"' in found
    assert len(found) > 3


@pytest.mark.parametrize("shell", SHELLS)
def test_the_line_that_resumes_is_the_line_that_was_typed(shell: str, tmp_path: Path) -> None:
    """Whatever stood in quotes stands in quotes again."""
    typed = ["--set", "grid={batch_size: [8], epochs: [1, 500]}", "--set", "seeds=[0, 1]", "--name", "shirts"]
    command = [sys.executable, "-c", STOPPED, *typed]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    said = done.stdout.strip()
    begin = "interrupted; to go on from here: python -m orchestrator.grid "
    assert said.startswith(begin), said + done.stderr
    assert arguments(shell, said.removeprefix(begin)) == typed


STOPPED = f"""
import os, orchestrator.grid as grid
from orchestrator.errors import run_command

grid.orchestrate = lambda *_: os.kill(os.getpid(), {int(signal.SIGINT)})
run_command(grid.main)
"""
