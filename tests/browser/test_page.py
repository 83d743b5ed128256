"""The report in a real browser: it shows, sorts, filters and draws, quietly, light and dark, on a desk and a phone."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from run_folders import HOSTILE, NASTY, add_winner, write_run

from orchestrator.display.page import write_page


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with two seeds, a failed trial, a winner, and hostile text wherever a text may stand."""
    folder = tmp_path_factory.mktemp("runs") / "cats & <dogs>"
    grid = {"batch_size": [16, 32, 64], "dropout": [0.0, 0.5], "note": [HOSTILE, "plain"], "epochs": [6, 12]}
    run = write_run(str(folder), grid, seeds=(0, 1), fail=1)
    add_winner(run, folder, (HOSTILE.replace("/", "|"), "dog"))
    write_page(run)
    return folder / "report.html"


def column(page: Page, name: str) -> list[str]:
    """The cells of one column of the board, from the top."""
    heads = page.locator("#points thead th").all_inner_texts()
    return page.locator(f"#points tbody td:nth-child({heads.index(name) + 1})").all_inner_texts()


def scroll_through(page: Page) -> None:
    """Bring every section onto the screen, and wait for its charts."""
    for section in page.locator("main > section").all():
        section.evaluate("section => section.scrollIntoView()")
        for chart in section.locator(".chart").all():
            chart.locator(".main-svg, .why").first.wait_for()


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_whole_page_is_drawn(visit: Callable[..., Page], cats: Path, width: int, scheme: str):
    """Every section and chart, no wider than the screen, in the colours that were asked for."""
    page = visit(cats, width, scheme)
    expect(page.locator("#verdict")).to_contain_text("best: batch_size=64 dropout=0.0")
    scroll_through(page)
    assert page.locator(".chart .why").count() == 0
    assert page.locator(".chart[role=img]").count() == 2 + 4 + 6  # curves, one for each axis, and the single charts
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))) < 384
    assert dark == (scheme == "dark")
    assert page.locator("#worst-images img").count() == 24
    assert page.locator("#worst figcaption").first.inner_text().startswith("dog, taken for ")
    assert "(90.0%)" in page.locator("#worst figcaption").first.inner_text()  # of what it was taken for
    assert page.locator("#class-figures tbody tr").count() == 2
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 28)")


def test_a_page_of_a_run_without_a_winner_says_what_is_missing(visit: Callable[..., Page], tmp_path: Path):
    """One axis, one seed, nothing beside the tables: each section that has nothing to show says why."""
    run = write_run(str(tmp_path / "plain"), {"dropout": [0.0, 0.5]})
    write_page(run)
    page = visit(tmp_path / "plain" / "report.html")
    scroll_through(page)
    expect(page.locator("#configurations")).to_have_count(0)
    for section, says in (
        ("heat", "It takes two axes with two values each"),
        ("time", "batch_size is no axis of this grid"),
        ("confusion", "no predictions of a winner"),
        ("classes", "no predictions of a winner"),
        ("worst", "no predictions of a winner"),
        ("data-facts", "no facts of its data"),
    ):
        expect(page.locator(f"#{section} .why")).to_contain_text(says)


def test_headers_sort_the_board_by_mouse_and_keyboard(visit: Callable[..., Page], cats: Path):
    """Accuracies from the highest, all else from the lowest; again the other way; points without a value stay last."""
    page = visit(cats)
    head = page.locator("#points thead th", has_text="val_loss")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "ascending")
    losses = column(page, "val_loss")
    assert losses == [*sorted(losses[:-2], key=float), "–", "–"]
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert column(page, "val_loss") == [*sorted(losses[:-2], key=float, reverse=True), "–", "–"]
    page.locator("#points thead button", has_text=re.compile("^accuracy")).click()
    expect(head).not_to_have_attribute("aria-sort", "descending")
    accuracies = column(page, "accuracy")
    assert accuracies[:-2] == sorted(accuracies[:-2], key=float, reverse=True)


def test_filters_narrow_the_board_and_the_charts(visit: Callable[..., Page], cats: Path):
    """By a list, by a condition, by any text; all of it comes back at once."""
    page = visit(cats)
    text = page.get_by_label("condition or text")

    def leaves(points: int, configurations: int) -> None:
        expect(page.locator("#count")).to_have_text(f"{points} of 48 points")
        assert page.locator("#points tbody tr").count() == points
        page.locator("#cost").scroll_into_view_if_needed()
        dots = page.locator("#chart-cost .scatterlayer .trace").first.locator(".point")
        expect(dots).to_have_count(configurations)

    leaves(48, 24)  # the seed that failed is no configuration of its own
    page.get_by_label("batch_size", exact=True).select_option("32")
    leaves(16, 8)
    assert set(column(page, "batch_size")) == {"32"}
    text.fill("dropout>0 epochs=6")
    leaves(4, 2)
    text.fill("onerror")
    leaves(8, 4)
    text.fill("there is no such text")
    leaves(0, 0)
    expect(page.locator("#chart-cost .why")).to_have_text("No point that the filters leave is ok.")
    page.get_by_role("button", name="Show all").click()
    leaves(48, 24)


def test_a_click_on_a_row_shows_its_curve(visit: Callable[..., Page], cats: Path):
    """Training and validation, to the point's own epochs; its button says so; another click takes it away."""
    page = visit(cats)
    lines = page.locator("#chart-loss .scatterlayer .trace")
    page.locator("#curves").scroll_into_view_if_needed()
    expect(lines).to_have_count(6)
    row = page.locator("#points tbody tr").nth(6)
    button = row.get_by_role("button")
    expect(button).to_have_attribute("aria-pressed", "false")
    row.locator("td").nth(2).click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(lines).to_have_count(8)
    name = button.get_attribute("aria-label").removeprefix("Learning curve of ")
    chip = page.locator("#chips").get_by_role("button", name=name, exact=True)
    epochs = int(re.search(r"epochs=(\d+)", name)[1])
    assert page.evaluate("document.getElementById('chart-loss').data.at(-1).x") == list(range(1, epochs + 1))
    assert "val_loss" in page.evaluate("document.getElementById('chart-loss').data.at(-1).hovertext[0]")
    expect(page.locator("#chart-loss")).to_have_attribute("aria-label", re.compile(re.escape(name)))
    chip.click()
    expect(lines).to_have_count(6)
    button.focus()
    page.keyboard.press("Space")
    expect(lines).to_have_count(8)


def test_the_heat_map_takes_any_two_axes(visit: Callable[..., Page], cats: Path):
    """Its cells follow the two lists."""
    page = visit(cats)
    page.get_by_label("across").select_option("dropout")
    page.get_by_label("down").select_option("batch_size")
    page.locator("#heat").scroll_into_view_if_needed()
    expect(page.locator("#chart-heat .annotation")).to_have_count(6)
    page.get_by_label("down").select_option("dropout")
    expect(page.locator("#chart-heat .why")).to_have_text("Choose two different axes.")


def test_hostile_text_stays_text(visit: Callable[..., Page], cats: Path, tmp_path: Path):
    """In the board, the charts, the captions and the spec it reads as it was written, and nothing of it runs."""
    page = visit(cats)
    scroll_through(page)
    assert HOSTILE in column(page, "note")
    assert f"Diverged: {HOSTILE}" in column(page, "error")
    for chart in ("chart-parallel", "chart-confusion"):
        assert "<img src=x onerror" in page.locator(f"#{chart}").text_content()
    expect(page.locator("figcaption", has_text="<img src=x onerror").first).to_be_visible()
    assert page.locator("img[onerror], img[src=x]").count() == 0
    assert page.title() == "cats & <dogs>"

    run = write_run(str(tmp_path / "nasty"), {"note": [NASTY, "plain"], "dropout": [0.0, 0.5]})
    write_page(run)
    page = visit(tmp_path / "nasty" / "report.html")
    scroll_through(page)
    assert page.locator("#points tbody td", has_text="</script>").first.text_content() == NASTY


def test_a_thousand_points_are_small_and_quick(visit: Callable[..., Page], tmp_path: Path):
    """Under 10 MB, and under 3 s of work until the board stands and the first charts are drawn.

    The time is what the page's thread worked, as the browser counts it: what else the machine does has no part in it.
    """
    grid = {
        "batch_size": [5, 10, 16, 32, 64],
        "dropout": [i / 20 for i in range(10)],
        "l2": [i / 1000 for i in range(20)],
    }
    write_page(write_run(str(tmp_path / "large"), grid, epochs=30))
    file = tmp_path / "large" / "report.html"
    assert file.stat().st_size < 10e6
    page = visit(file)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    expect(page.locator("#count")).to_have_text("1,000 of 1,000 points")
    assert page.locator("#points tbody tr").count() == 1000
    page.locator("#curves").scroll_into_view_if_needed()
    page.locator("#chart-loss .main-svg").first.wait_for()
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    assert 0 < next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration") < 3
