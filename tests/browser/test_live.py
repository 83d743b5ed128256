"""The report while its run goes on, in a real browser: it follows the run, and what the reader chose stays."""

from pathlib import Path

from playwright.sync_api import Browser, expect
from run_folders import write_run

from orchestrator.display.page import gather
from orchestrator.display.serving import serving
from orchestrator.runs.lease import Lease

GRID = {"batch_size": [16, 32, 64], "dropout": [0.0, 0.5]}


def test_a_page_follows_its_run(browser: Browser, tmp_path: Path):
    """Board, curves, what runs and the time left change without a reload; filter, order, curves and scroll stay."""
    uri = str(tmp_path / "cats")
    run = write_run(uri, GRID, fail=1)
    board = gather(run)["board"]["columns"]
    trial = next(t for t, status in zip(board["trial_id"], board["status"], strict=True) if status == "failed")
    epochs = [{"epoch": i, "val_accuracy": 0.5, "accuracy": 0.5, "val_loss": 1.0, "loss": 1.0} for i in (1, 2, 3)]
    progress = {"left_s": 120.0, "waiting": 3, "preparing": [], "running": {trial: {"epochs": 12, "history": epochs}}}
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    asked, heard = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: heard.append(str(error)))
    with Lease(run.store, lambda: None):
        with serving(run) as address:
            run.write_progress(progress)
            page.goto(address)
            expect(page.locator("#state")).to_have_text("Running")
            expect(page.locator("#now-note")).to_contain_text("About 2 min left. 1 trial running, 3 waiting.")
            expect(page.locator("#now-trials tbody td").nth(1)).to_have_text("3")
            expect(page).to_have_title("5/6 cats")
            page.set_viewport_size({"width": 390, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            page.set_viewport_size({"width": 1400, "height": 900})
            page.get_by_label("condition or text").fill("batch_size>16")
            page.locator("#points thead th[data-name=dropout] button").click()
            page.locator("#points tbody tr").nth(3).get_by_role("button").click()
            expect(page.locator("#chips button")).to_have_count(4)
            page.evaluate("scrollTo({ top: 400, behavior: 'instant' })")

            write_run(uri, GRID, seeds=(0, 1))
            run.write_progress(progress | {"left_s": 30.0, "running": {}})
            expect(page.locator("#count")).to_have_text("8 of 12 points", timeout=20_000)
            expect(page.locator("#now-note")).to_contain_text("About 30 s left. 0 trials running")
            expect(page.get_by_label("condition or text")).to_have_value("batch_size>16")
            expect(page.locator("#points thead th[data-name=dropout]")).to_have_attribute("aria-sort", "ascending")
            expect(page.locator("#chips button")).to_have_count(4)
            assert page.evaluate("scrollY") == 400
            run.write_progress(None)  # as a driver does in the end: the page gets the last state
        expect(page.locator("#now")).to_be_hidden()
        expect(page.locator("#state")).to_have_text("The run has ended")
    context.close()
    assert heard == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
