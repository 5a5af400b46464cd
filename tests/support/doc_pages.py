"""The pages of the documentation and the examples on them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced example. file: the one that it shows (```yaml title="recipes/mine.yaml"; a title with a space names
    none).
    """

    language: str
    file: str | None
    text: str
    line: int  # from 1


def page_name(page: Path) -> str:
    """The name of a page in lists and names of tests: `README.md`, `tutorial.md`."""
    return page.name if page.parent == ROOT else str(page.relative_to(ROOT / "docs"))


def blocks(page: Path) -> list[Block]:
    """All fenced examples that name their language, in their order; those inside lists are dedented."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=match["language"],
            file=title[1] if (title := re.search(r'title="([^" ]+)"', match["info"])) else None,
            text=textwrap.dedent(match["text"]),
            line=text.count("\n", 0, match.start()) + 1,
        )
        for match in _FENCE.finditer(text)
    ]


def section(text: str, heading: str) -> str:
    """The text under a heading of a page, up to the next one."""
    return re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """The code in the first column of a Markdown table."""
    return re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
