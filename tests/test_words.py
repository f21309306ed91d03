"""The words of README and docs: none that were retired, no history of our own work.

`docs/glossary.md` says which word is used for each idea.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RETIRED = {
    r"\btwin (encoder|space)": "dual encoder",
    r"\bcentred?\b": "center, centered",
    r"\bwish(es)?\b": "query",
    r"\bspread queries\b": "whitened queries",
    r"\btruth (table|file)s?\b": "relevance judgements",
}
HISTORY = (
    r"that was asked for\b",
    r"the issue\b",
    r"\b(was|were) lent\b",
    r"an? earlier `?mini",
    r"`mini` of [\d,]+ steps",
    r"\b202[5-9]-\d\d-\d\d\b",
    r"\bthe day before\b",
    r"\b(TODO|TBD|FIGURES)\b",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_uses_the_words_of_the_glossary(page):
    prose = re.sub(r"```.*?```|`[^`]*`|https?://\S+", "", page.read_text("utf-8"), flags=re.DOTALL)

    found = {w: use for w, use in RETIRED.items() if re.search(w, prose, re.IGNORECASE)}

    assert not found, f"retired words and what to write instead: {found}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_tells_no_history(page):
    text = page.read_text("utf-8")

    assert not [match[0] for form in HISTORY for match in re.finditer(form, text)]


def test_every_page_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]

    listed = set(re.findall(r"([\w/-]+\.md)$", navigation, re.MULTILINE))

    docs = ROOT / "docs"
    assert listed == {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
