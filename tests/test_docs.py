"""docs: links lead somewhere, and what the pages say of the code's shape is so."""

import re
from pathlib import Path

import pytest
from test_law import FLOORS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in (ROOT, ROOT / "docs", ROOT / "tests")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)
# The picture, and whatever else is drawn, is in the repository for good.
MOST_BYTES = 200_000


def prose(text: str) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What its headings are called in links, as GitHub has it."""
    titles = re.findall(r"^#+ (.*)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    """Links on the network are not looked up."""
    links = re.findall(r"\]\(([^)\s]+)\)", prose((ROOT / page).read_text(encoding="utf-8")))
    for link in (link for link in links if "://" not in link):
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_pages_were_found() -> None:
    """Those that link to each other, and the benchmarks' own."""
    assert {"README.md", "ARCHITECTURE.md", "docs/reliability.md", "tests/benchmarks/README.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    """Code, tests, jobs and infrastructure, wherever they are named in full."""
    text = (ROOT / page).read_text(encoding="utf-8")
    names = re.findall(r"`((?:orchestrator|tests|jobs|infra|docs)/[\w./-]*)`", text)
    assert [name for name in names if not ((ROOT / name).exists() or (ROOT / f"{name}.py").exists())] == []


def test_the_architecture_lists_every_wing_on_its_floor() -> None:
    """As the test of the law has them. The page is one that can be read in one sitting."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    floors: list[set[str]] = []
    for number, wing in re.findall(r"^\| (\d*) *\| `(\w+)` \|", text, re.MULTILINE):
        floors += [set()] if number else []
        assert not number or int(number) == len(floors)
        floors[-1].add(wing)
    assert floors == FLOORS
    assert len(text.splitlines()) <= 200


def test_pictures_are_small() -> None:
    """The README's is loaded by everybody who looks at it."""
    pictures = [*ROOT.glob("docs/*.png"), *ROOT.glob("docs/*.svg")]
    assert {"report.png", "scale.svg"} <= {picture.name for picture in pictures}
    assert [picture.name for picture in pictures if picture.stat().st_size > MOST_BYTES] == []
