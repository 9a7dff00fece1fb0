"""Every word of the nodes is there in every language, every page of help is whole, and nothing is left over."""

import re

import pytest

from tests.surface.help_pages import HEADINGS, PAGES, page_path
from tests.surface.words import LANGUAGES, LOCALES, at, node_words, paths

NODES = sorted(node_words("en"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def test_languages_are_complete_and_nothing_is_left_over() -> None:
    assert sorted(path.name for path in LOCALES.iterdir()) == sorted(LANGUAGES)
    for language in LANGUAGES:
        assert sorted(paths(node_words(language))) == sorted(paths(node_words("en"))), language


def test_no_word_is_empty_and_tooltips_are_translated() -> None:
    for path in paths(node_words("en")):
        assert at(node_words("en"), path).strip(), path
        text = at(node_words("zh"), path)
        # Names such as "latent", "sigmas" and "TF32" are said in English by everybody.
        assert CHINESE.search(text) if path.endswith(("tooltip", "description", "display_name")) else text.strip(), path


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_every_node_has_a_whole_page(node: str, language: str) -> None:
    page = page_path(node, language).read_text(encoding="utf-8")
    title, what, *_ = [line for line in page.splitlines() if line]
    assert title == f"# {node_words(language)[node]['display_name']}"
    assert len(what) > 20 and not what.startswith(("#", "|"))
    assert tuple(re.findall(r"^## (.*)$", page, re.M)) == HEADINGS[language]
    assert len(re.findall(r"^- \*\*", page.split(f"## {HEADINGS[language][3]}")[1], re.M)) >= 1


def test_no_page_is_left_over() -> None:
    expected = {page_path(node, language) for node in NODES for language in LANGUAGES}
    assert {path for path in PAGES.rglob("*") if path.is_file()} == expected
