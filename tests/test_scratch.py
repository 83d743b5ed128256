"""scratch: folders of killed processes go, those in use stay."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import scratch

HOLD = """
from orchestrator.scratch import scratch
with scratch() as folder:
    print(folder, flush=True)
    input()
"""


def test_a_folder_goes_with_its_process_or_soon_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends takes it along; that of a killed one is swept away, that of a living one is not."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folders = []
    for number in (0, signal.SIGKILL, None):
        command = [sys.executable, "-c", HOLD]
        process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        folders.append(Path(process.stdout.readline().strip()))
        if number is not None:
            process.send_signal(number)
            process.communicate("\n")
    ended, killed, living = folders
    assert not ended.exists()
    assert killed.exists()
    scratch.sweep()
    assert not killed.exists()
    assert living.exists()
    process.communicate("\n")
    assert list(tmp_path.iterdir()) == []
