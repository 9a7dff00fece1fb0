"""The help pages of the nodes: `web/docs/<node id>.md` in English, `web/docs/<node id>/<language>.md` in others.

What a node does, its example and its common mistakes are written by people. The tables of inputs and outputs are
written from the nodes and from `locales/` (see `surface.py` for the command), so that they cannot say something else.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.surface.surface import default_of
from tests.surface.words import at
from tests.workflows.ui_format import DYNAMIC_COMBO

PAGES = Path(__file__).parents[2] / "web" / "docs"
HEADINGS = {
    "en": ("Inputs", "Outputs", "Example", "Common mistakes"),
    "zh": ("输入", "输出", "示例", "常见错误"),
}
_TABLES = {
    "en": ("| input | type | default | what it is |", "| output | type | what it is |", " (optional)"),
    "zh": ("| 输入 | 类型 | 默认值 | 说明 |", "| 输出 | 类型 | 说明 |", "（可选）"),
}


def page_path(node: str, language: str) -> Path:
    return PAGES / (f"{node}.md" if language == "en" else f"{node}/{language}.md")


def with_tables(page: str, node: str, info: dict[str, Any], words: dict[str, Any], language: str) -> str:
    """A page with its two tables as the node has them now."""
    inputs, outputs = HEADINGS[language][:2]
    page = _with_section(page, inputs, input_table(node, info, words, language))
    return _with_section(page, outputs, output_table(node, info, words, language))


def input_table(node: str, info: dict[str, Any], words: dict[str, Any], language: str) -> str:
    head, _, optional = _TABLES[language]
    lines = [head, "|---|---|---|---|"]
    for name, kind, is_optional, default in _inputs(info["input"]):
        tooltip = at(words, f"{node}/inputs/{name.replace('.', '_')}/tooltip").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind}{optional if is_optional else ''} | {default} | {tooltip} |")
    return "\n".join(lines)


def output_table(node: str, info: dict[str, Any], words: dict[str, Any], language: str) -> str:
    lines = [_TABLES[language][1], "|---|---|---|"]
    for index, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True)):
        tooltip = at(words, f"{node}/outputs/{index}/tooltip").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind} | {tooltip} |")
    return "\n".join(lines)


def _with_section(page: str, heading: str, body: str) -> str:
    before, mark, rest = page.partition(f"\n## {heading}\n")
    assert mark, f"the page has no section {heading!r}"
    following = rest.find("\n## ")
    return f"{before}{mark}\n{body}\n{rest[following:] if following >= 0 else ''}"


def _inputs(groups: dict[str, dict[str, list[Any]]], prefix: str = "") -> Iterator[tuple[str, str, bool, str]]:
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            facts = rest[0] if rest else {}
            dynamic = kind == DYNAMIC_COMBO
            # What stands first in a list of files is one machine's affair.
            default = facts["options"][0]["key"] if dynamic else default_of(facts)
            shown = "" if default in (None, "") else f"`{default}`"
            is_combo = dynamic or isinstance(kind, list)
            yield f"{prefix}{name}", "COMBO" if is_combo else kind, group == "optional", shown
            for option in facts["options"] if dynamic else ():
                yield from _inputs(option["inputs"], f"{prefix}{name}.")
