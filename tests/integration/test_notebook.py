"""The notebook that comes with the project, in a real kernel, which is lost on the way."""

import contextlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from waiting import eventually

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.ipynb"


def notebook(cwd: Path, cells: int | None = None) -> nbclient.NotebookClient:
    """A client that will execute the first cells, or all, in this folder."""
    read = nbformat.read(QUICKSTART, as_version=4)
    read.cells = read.cells[:cells]
    return nbclient.NotebookClient(read, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(cwd)}})


def shown(client: nbclient.NotebookClient) -> list[Any]:
    """Everything that the cells put out, in order."""
    return [output for cell in client.nb.cells if cell.cell_type == "code" for output in cell.outputs]


def lose(client: nbclient.NotebookClient, run: Path) -> None:
    """Kill the kernel and all its processes as soon as the run has a result, as a machine is lost."""
    eventually(lambda: list((run / "trials").glob("*.json")) if run.exists() else [])
    os.killpg(client.km.provisioner.pgid, signal.SIGKILL)


def test_a_lost_notebook_goes_on_and_ends(tmp_path: Path) -> None:
    """The same cells again: nothing is trained twice, and each cell shows what it should and no more."""
    run = tmp_path / "runs" / "shirts"
    first = notebook(tmp_path, cells=6)
    killer = threading.Thread(target=lose, args=(first, run))
    killer.start()
    with contextlib.suppress(nbclient.exceptions.DeadKernelError):
        first.execute()
    killer.join()
    before = {path.name: path.stat().st_mtime_ns for path in (run / "trials").glob("*.json")}

    again = notebook(tmp_path)
    again.execute()
    assert before
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in (run / "trials").glob("*.json")}.items()
    outputs = shown(again)
    assert [output for output in outputs if output.output_type in ("stream", "error")] == []
    texts = [output.data.get("text/plain", "") for output in outputs if output.output_type != "stream"]
    assert texts[0].startswith("shirts: 8 points, 4 trials")
    assert "trials of 4 to train" in texts[1]
    assert any(text.startswith("best: ") for text in texts)
    assert sum("application/vnd.plotly.v1+json" in output.data for output in outputs) == 4
    assert (
        json.loads((tmp_path / "runs/own/models/best.json").read_text())["spec"]["model"]
        == "two_layers_model:two_layers"
    )
