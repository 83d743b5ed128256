"""The report in a real browser: it shows, sorts, filters, draws and prints, quietly, on a desk and on a phone."""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect
from run_folders import HOSTILE, NASTY, add_winner, write_run

from orchestrator.display.page import write_page
from orchestrator.runs.folder import BOARD, read_parquet
from orchestrator.runs.rates import RateFound, keep_rate


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with two seeds, a failed trial, a winner, and hostile text wherever a text may stand."""
    folder = tmp_path_factory.mktemp("runs") / "cats & <dogs>"
    grid = {"batch_size": [16, 32, 64], "dropout": [0.0, 0.5], "note": [HOSTILE, "plain"], "epochs": [6, 12]}
    run = write_run(str(folder), grid, seeds=(0, 1), fail=1)
    add_winner(run, folder, (HOSTILE.replace("/", "|"), "dog"))
    write_page(run)
    return folder / "report.html"


def column(page: Page, name: str, table: str = "points") -> list[str]:
    """The cells of one column of the board, from the top."""
    heads = page.locator(f"#{table} thead th").evaluate_all("heads => heads.map((head) => head.dataset.name)")
    return page.locator(f"#{table} tbody td:nth-child({heads.index(name) + 1})").all_inner_texts()


def open_all(page: Page) -> None:
    """Open what is closed on a narrow screen."""
    page.locator("section.closed h2 button").evaluate_all("all => all.forEach((button) => button.click())")


def drag(page: Page, chart: str, left: float, top: float, right: float, bottom: float) -> None:
    """Draw a box over a chart, in parts of its plot's width and height."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    plot = page.locator(f"#{chart} .nsewdrag").first
    plot.wait_for(state="attached")
    box = plot.bounding_box()
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in ((left, top), (right, bottom))]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=5)
    page.mouse.up()


def scroll_through(page: Page) -> None:
    """Bring every section onto the screen, and wait for its charts."""
    for section in page.locator("main > section").all():
        section.evaluate("section => section.scrollIntoView()")
        for chart in section.locator(".chart:visible").all():
            chart.locator(".main-svg, .why").first.wait_for()


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_whole_page_is_drawn(visit: Callable[..., Page], cats: Path, width: int, scheme: str):
    """Every section and chart, no wider than the screen, in the colours that were asked for."""
    page = visit(cats, width, scheme)
    expect(page.locator("#verdict dd")).to_have_text(["64", "0", "12", HOSTILE])
    expect(page.locator("#signs li").first).to_have_text("2 of 23 others may be as good")
    assert page.locator("#figure b").inner_text() == column(page, "score", "folded")[0]
    if width == 390:
        assert page.evaluate("document.documentElement.scrollHeight") < 5000
    open_all(page)
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
    assert page.evaluate(
        "[...document.querySelectorAll('.worst img')].every((image) => image.complete && image.naturalWidth === 28)"
    )


def test_a_page_of_a_run_without_a_winner_says_what_is_missing(visit: Callable[..., Page], tmp_path: Path):
    """One axis, one seed, nothing beside the tables: what has nothing to show is not there, and the end says why."""
    run = write_run(str(tmp_path / "plain"), {"dropout": [0.0, 0.5]})
    write_page(run)
    page = visit(tmp_path / "plain" / "report.html")
    scroll_through(page)
    expect(page.locator("#configurations")).to_be_hidden()
    expect(page.locator("#rates")).to_be_hidden()
    for section, says in (
        ("heat", "It takes two axes with two values each"),
        ("time", "batch_size is no axis of this grid"),
        ("confusion", "no predictions of a winner"),
        ("classes", "no predictions of a winner"),
        ("worst", "no predictions of a winner"),
        ("data-facts", "no facts of its data"),
    ):
        expect(page.locator(f"#{section}")).to_be_hidden()
        expect(page.locator("#absences")).to_contain_text(says)


def test_the_curves_of_range_tests_are_drawn(visit: Callable[..., Page], tmp_path: Path):
    """With the rates that were taken, named by what the tests differ in; a loss that is no number ends its curve."""
    run = write_run(str(tmp_path / "found"), {"batch_size": [16, 32]})
    board = pq.read_table(tmp_path / "found" / "leaderboard.parquet")
    run.write_tables({"leaderboard.parquet": board.append_column("rate_used", pa.array([0.002, 0.003]))})
    for size, rate in ((32, 0.003), (16, 0.002)):
        curve = {"rates": [0.001, 0.0032, 0.01], "losses": [0.7, 0.5, None]}
        values = {"batch_size": size, "optimizer": "adam"}
        keep_rate(run, RateFound(test_id=str(size), values=values, rate=rate, **curve))
    write_page(run)
    page = visit(tmp_path / "found" / "report.html")
    scroll_through(page)
    expect(page.locator("#chart-rates")).to_have_attribute(
        "aria-label", "learning rates found: batch_size=16: 0.002; batch_size=32: 0.003"
    )
    assert page.locator("#chart-rates .scatterlayer .trace").count() == 4


def test_headers_sort_the_board_by_mouse_and_keyboard(visit: Callable[..., Page], cats: Path):
    """Accuracies from the highest, all else from the lowest; again the other way; points without a value stay last."""
    page = visit(cats)
    head = page.locator("#points thead th[data-name=val_loss]")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "ascending")
    losses = column(page, "val_loss")
    assert losses == [*sorted(losses[:-2], key=float), "–", "–"]
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert column(page, "val_loss") == [*sorted(losses[:-2], key=float, reverse=True), "–", "–"]
    page.locator("#points thead th[data-name=accuracy] button").click()
    expect(head).not_to_have_attribute("aria-sort", "descending")
    accuracies = column(page, "accuracy")
    assert accuracies[:-2] == sorted(accuracies[:-2], key=float, reverse=True)


def test_the_score_is_drawn_against_the_size_of_models(visit: Callable[..., Page], tmp_path: Path):
    """Where they differ, it is asked for in one list."""
    run = write_run(str(tmp_path / "sizes"), {"batch_size": [16, 32, 64], "epochs": [6]})
    board = read_parquet(run.store.read(BOARD))
    sizes = pa.array([1000 * value for value in board["batch_size"].to_pylist()], pa.int64())
    place = board.schema.get_field_index("parameters")
    run.write_tables({BOARD: board.set_column(place, "parameters", sizes)})
    write_page(run)
    page = visit(tmp_path / "sizes" / "report.html")
    page.locator("#cost").scroll_into_view_if_needed()
    chart = page.locator("#chart-cost")
    expect(chart).to_have_attribute("aria-label", re.compile("against training time of a point, s of 3 configurations"))
    page.get_by_label("cost", exact=True).select_option("parameters")
    expect(chart).to_have_attribute("aria-label", re.compile("frontier: .*batch_size=16.* with 16,000 parameters"))


def test_filters_narrow_the_board_and_the_charts(visit: Callable[..., Page], cats: Path):
    """By a list, by a condition, by any text; all of it comes back at once."""
    page = visit(cats)
    text = page.get_by_label("condition or text")

    def leaves(points: int, configurations: int) -> None:
        expect(page.locator("#count")).to_have_text(f"{points} of 48 points")
        assert page.locator("#points tbody tr:not(:has([colspan]))").count() == points
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
    expect(page.locator("#points tbody")).to_contain_text("No point fulfils all of this.")
    expect(page.locator("#chart-cost .why")).to_have_text("No point that the filters leave is ok.")
    text.fill("dropuot=0.5 epochs=6")  # what is right of it counts
    expect(page.locator("#hint")).to_have_text("No column is called “dropuot”: did you mean dropout?")
    leaves(8, 4)
    text.fill("batch_size=small")
    expect(page.locator("#hint")).to_have_text("batch_size must be compared with a number, got “small”.")
    page.get_by_role("button", name="Show all").click()
    leaves(48, 24)


def test_a_click_on_a_row_shows_its_curve(visit: Callable[..., Page], cats: Path):
    """The mean of its seeds and their band, to the point's own epochs; its button says so; another click undoes it."""
    page = visit(cats)
    lines = page.locator("#chart-loss .scatterlayer .trace")
    page.locator("#curves").scroll_into_view_if_needed()
    expect(lines).to_have_count(9)  # of three configurations: training, validation, and the band of validation
    row = page.locator("#folded tbody tr").nth(6)
    button = row.get_by_role("button")
    expect(button).to_have_attribute("aria-pressed", "false")
    row.locator("td").nth(2).click()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(lines).to_have_count(12)
    name = button.get_attribute("aria-label").removeprefix("Learning curve of ")
    chip = page.locator("#chips").get_by_role("button", name=name, exact=True)
    epochs = int(re.search(r"epochs=(\d+)", name)[1])
    drawn = page.evaluate(
        "document.getElementById('chart-loss').data.slice(-2).map(({ x, hovertext }) => [x, hovertext])"
    )
    assert drawn[1][0] == list(range(1, epochs + 1))
    assert re.match(r"val_loss 1\.\d+ \(1\.\d+ to 1\.\d+ over 2\) after epoch 1<br>", drawn[1][1][0])
    expect(page.locator("#chart-loss")).to_have_attribute("aria-label", re.compile(re.escape(name)))
    chip.click()
    expect(lines).to_have_count(9)
    page.get_by_label("each seed or fold, too").check()
    expect(lines).to_have_count(9 + 3 * 2 * 2)
    page.get_by_label("each seed or fold, too").uncheck()
    button.focus()
    page.keyboard.press("Space")
    expect(lines).to_have_count(12)


def test_a_chart_chooses_rows_of_the_board(visit: Callable[..., Page], cats: Path):
    """A box over an axis or over dots, or a click on a dot; what is chosen is named where the reader is."""
    page = visit(cats)
    bar, count = page.locator("#brush"), page.locator("#count")
    drag(page, "chart-parallel", 0.0, 0.0, 0.05, 0.2)
    expect(count).to_have_text("14 of 48 points")  # all of that size but for the two that failed
    assert set(column(page, "batch_size")) == {"64"}
    drag(page, "chart-parallel", 0.95, 0.0, 1.0, 0.5)  # of these, those with the better scores
    expect(page.locator("#brushed")).to_contain_text("Chosen on score")
    assert 0 < page.locator("#points tbody tr").count() < 14
    bar.get_by_role("button", name="Show all").click()
    expect(count).to_have_text("48 of 48 points")
    expect(bar).to_be_hidden()
    drag(page, "chart-cost", 0.01, 0.01, 0.99, 0.99)
    expect(page.locator("#brushed")).to_contain_text("24 configurations")
    bar.get_by_role("button", name="Show all").click()
    before = page.evaluate("scrollY")
    dot = page.locator("#chart-cost .scatterlayer .trace").first.locator(".point").first
    box = dot.bounding_box()
    page.mouse.move(5, 5)
    page.mouse.move(box["x"], box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#chart-cost .hoverlayer .hovertext").wait_for()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(bar).to_be_visible()
    assert page.evaluate("scrollY") == before
    assert page.locator("#folded tbody tr").count() == 1


def test_a_worst_image_is_enlarged(visit: Callable[..., Page], cats: Path):
    """By mouse or keyboard, with what the model says of it; the next one at an arrow; and back to where it was."""
    page = visit(cats)
    first = page.locator("#worst-images button").first
    first.focus()
    page.keyboard.press("Enter")
    says = page.locator("#zoom-says")
    expect(says).to_contain_text("1 of 24: dog, taken for ")
    expect(says).to_contain_text("Its own class: 10.0%.")
    page.keyboard.press("ArrowRight")
    expect(says).to_contain_text("2 of 24: ")
    page.keyboard.press("Escape")
    expect(page.locator("#zoom")).to_be_hidden()
    expect(first).to_be_focused()


def test_on_paper_every_chart_is_drawn(visit: Callable[..., Page], cats: Path):
    """In light, as wide as the paper, nothing closed or cut, also where nobody has scrolled; afterwards as before."""
    page = visit(cats, 1400, "dark")
    page.locator("#chart-loss .main-svg").first.wait_for()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".chart[role=img]").count() == 2 + 4 + 6
    widths = page.locator(".chart .main-svg").evaluate_all("all => all.map((svg) => svg.getBoundingClientRect().width)")
    assert min(widths) > 0
    assert max(widths) <= 700
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_equal_values_stay_within_their_axis(visit: Callable[..., Page], tmp_path: Path):
    """An accuracy that never moves is drawn between 0 and 1, and a little room."""
    run = write_run(str(tmp_path / "flat"), {"dropout": [0.0]}, epochs=3)
    history = pq.read_table(tmp_path / "flat" / "history.parquet")
    for name in ("accuracy", "val_accuracy"):
        ones = pa.array([1.0] * history.num_rows)
        history = history.set_column(history.column_names.index(name), name, ones)
    run.write_tables({"history.parquet": history})
    write_page(run)
    page = visit(tmp_path / "flat" / "report.html")
    page.locator("#curves").scroll_into_view_if_needed()
    page.locator("#chart-accuracy .main-svg").first.wait_for()
    low, high = page.evaluate("document.getElementById('chart-accuracy').layout.yaxis.range")
    assert 0.9 < low < 1 < high < 1.05


def test_the_heat_map_takes_any_two_axes(visit: Callable[..., Page], cats: Path):
    """Its cells follow the two lists."""
    page = visit(cats)
    page.get_by_label("across").select_option("dropout")
    page.get_by_label("down").select_option("batch_size")
    page.locator("#heat").scroll_into_view_if_needed()
    expect(page.locator("#chart-heat .annotation")).to_have_count(6)
    page.get_by_label("down").select_option("dropout")
    expect(page.locator("#chart-heat .why")).to_have_text("Choose two different axes.")


def test_ranges_are_shown_in_quarters(visit: Callable[..., Page], tmp_path: Path):
    """64 rates are 4 columns of the heat map; lines of the parallel chart stand on a log scale."""
    grid = {"learning_rate": {"from": 1e-4, "to": 1e-2, "scale": "log"}, "batch_size": {"from": 8, "to": 71}}
    write_page(write_run(str(tmp_path / "drawn"), grid, drawn=64))
    page = visit(tmp_path / "drawn" / "report.html")
    open_all(page)
    scroll_through(page)
    page.locator("#heat-across").select_option("learning_rate")
    page.locator("#heat-down").select_option("batch_size")
    expect(page.locator("#chart-heat .xtick text")).to_have_text(
        ["0.0001 to 0.000316", "0.000316 to 0.001", "0.001 to 0.00316", "0.00316 to 0.01"]
    )
    expect(page.locator("#chart-heat .ytick text")).to_have_text(["8 to 23", "24 to 39", "40 to 55", "56 to 71"])
    ticks = page.locator("#chart-parallel .annotation-text").all_text_contents()
    assert any(0.0009 < float(text) < 0.0011 for text in ticks), "halfway between 0.0001 and 0.01"


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
