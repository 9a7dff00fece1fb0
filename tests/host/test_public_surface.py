"""The nodes as saved workflows know them, and what their words and their help say of them."""

import json
import os

import pytest

from tests.host.client import Client
from tests.host.server import PACK_FOLDER
from tests.surface import help_pages, surface, words


@pytest.fixture
def info(client: Client) -> dict:
    return {name: node for name, node in client.get("/object_info").items() if name.startswith("WanVelocity")}


def test_nodes(info: dict) -> None:
    assert surface.check("nodes", surface.nodes(info)) == []


def test_english_words_are_those_of_the_nodes(info: dict) -> None:
    found = words.from_nodes(info)
    if os.environ.get(surface.RENEW):
        text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        (words.LOCALES / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")
    assert words.node_words("en") == found


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_help_has_the_inputs_and_outputs_of_the_nodes(info: dict, language: str) -> None:
    for node, facts in info.items():
        path = help_pages.page_path(node, language)
        page = path.read_text(encoding="utf-8")
        expected = help_pages.with_tables(page, node, facts, words.node_words(language), language)
        if os.environ.get(surface.RENEW):
            path.write_text(expected, encoding="utf-8")
        assert expected == page or os.environ.get(surface.RENEW), f"{path.name}: renew it as the surface is renewed"


def test_the_host_serves_help_and_words(client: Client) -> None:
    served = client.get("/i18n")
    assert served["zh"]["nodeDefs"]["WanVelocitySampler"] == words.node_words("zh")["WanVelocitySampler"]
    assert served["en"]["nodeCategories"]["Wan Velocity"]
    for language in words.LANGUAGES:
        path = help_pages.page_path("WanVelocitySampler", language)
        page = client.page(f"/extensions/{PACK_FOLDER}/docs/{path.relative_to(help_pages.PAGES).as_posix()}")
        assert page == path.read_text(encoding="utf-8")
