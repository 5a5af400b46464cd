"""One text that must not come through: what a terminal obeys, what hides, what turns text around, and markup."""

from __future__ import annotations

import html
import re

from markdown_it import MarkdownIt

END = "END-OF-PLANTED"
MARKUP = "<img src=x onerror=alert(1)>[link](http://planted.example)|`$x_1$"
INVISIBLE = "\x1b[6m\x1b]0;title\x07\x9b6m\u202e\u2066\u200b\u2060\ufeff\u2028\u2029\x85\r"
PLANTED = f"{INVISIBLE}{MARKUP}\n{END}"
IN_A_LINE = f"{INVISIBLE}{MARKUP}{END}"
OUR_COLOURS = re.compile(r"\x1b\[(?:[0-57-9]|[0-9;]{2,})*m")  # not the planted one, \x1b[6m


def hidden_characters(text: str) -> list[str]:
    """Characters that people cannot see: those that a text of ours never holds."""
    return [c for c in text if not (c.isprintable() or c in "\n\t\u200c\u200d")]


def problems_of_text(text: str) -> list[str]:
    """What came through into text for a terminal."""
    found = [f"hidden: {character!r}" for character in hidden_characters(OUR_COLOURS.sub("", text))]
    return found + [f"begins a line: {line!r}" for line in text.split("\n") if line.startswith(END)]


def problems_of_page(page: str) -> list[str]:
    """What came through into HTML: hidden characters, written or as references, and elements."""
    found = [f"hidden: {character!r}" for character in hidden_characters(html.unescape(page))]
    return found + [f"element: {tag}" for tag in ("<img", "onerror=alert(1)>") if tag in page]


def problems_of_markdown(text: str) -> list[str]:
    """What came through into Markdown: hidden characters, elements, links."""
    found = [f"hidden: {character!r}" for character in hidden_characters(text)]
    body = text.split("\n---\n", 1)[-1]
    tokens = [inner for token in MarkdownIt("commonmark").enable("table").parse(body) for inner in _with_inner(token)]
    for token in tokens:
        if token.type in ("html_inline", "html_block", "image"):
            found.append(f"{token.type}: {token.content}")
        if token.type == "link_open" and "planted" in str(token.attrs):
            found.append(f"link: {token.attrs}")
    return found


def _with_inner(token: object) -> list:  # type: ignore[type-arg]
    return [token, *(getattr(token, "children", None) or [])]
