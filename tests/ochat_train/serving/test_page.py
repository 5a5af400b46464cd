"""The web page without a browser: one file without outside requests, under a policy that lets nothing else run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest

from ochat_train.serving.page import PARTS, SCRIPTS, content_security_policy, page, page_headers

# Ways of a script to read text as HTML or as a program.
DANGEROUS = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc|"
    r"\beval\(|new Function|import\("
)
LOADED = {"src", "srcset", "action", "formaction", "background", "poster", "data", "ping", "style"}


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


def problems(html: str) -> list[str]:
    """What a page that holds itself may not have."""
    found = re.findall(DANGEROUS, html)
    found += re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"']*", html)
    found += re.findall(r"@import|url\(", html)
    for tag, attributes in Elements(html).found:
        found += [f"{tag} {name}" for name in attributes if name in LOADED or name.startswith("on")]
        if tag in ("iframe", "object", "embed", "img", "base") or (tag == "link" and attributes["href"] != "data:,"):
            found.append(tag)
    return found


def test_the_page_loads_nothing_and_reads_no_text_as_html() -> None:
    assert problems(page().decode()) == []


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="/a.js"></script>',
        '<link rel="stylesheet" href="a.css">',
        "<img alt=''>",
        "<style>body { background: url(x) }</style>",
        "<script>node.innerHTML = text</script>",
        "<script>fetch('https://example.com/')</script>",
        '<p onclick="x()"></p>',
    ],
)
def test_the_control_is_found(planted: str) -> None:
    assert problems(page().decode() + planted)


def test_every_part_is_in_the_page() -> None:
    assert {path.name for path in PARTS.iterdir()} == {*SCRIPTS, "page.html", "page.css"}
    text = page().decode()
    for path in PARTS.iterdir():
        assert path.name == "page.html" or path.read_text(encoding="utf-8") in text
    assert [text.count(f"<{tag}>") for tag in ("script", "style")] == [1, 1], "the policy names one of each"


def test_every_field_and_button_has_a_name() -> None:
    """A reader of the screen meets no field without a label."""
    elements = Elements(page().decode()).found
    labelled = {attributes["for"] for tag, attributes in elements if tag == "label" and "for" in attributes}
    inside = ("system", "target", "key")  # these are inside their label
    fields = [a for tag, a in elements if tag in ("input", "textarea", "select")]
    assert len(fields) == 7
    assert all(a["id"] in (*labelled, *inside) or "aria-label" in a for a in fields)


def directives(policy: str) -> dict[str, Sequence[str]]:
    return {name: values for name, *values in (rule.split() for rule in policy.split(";"))}


def test_the_policy_allows_the_own_script_and_nothing_else() -> None:
    headers = page_headers()
    policy = directives(headers["Content-Security-Policy"])
    assert (
        policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == ["'none'"]
    )
    assert policy["connect-src"] == ["'self'"]
    assert policy["require-trusted-types-for"] == ["'script'"]
    [script], [style] = policy["script-src"], policy["style-src"]
    assert script.startswith("'sha256-")
    assert style.startswith("'sha256-")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_policy_follows_the_script() -> None:
    """A literal hash: printf 'alert(1)' | openssl dgst -sha256 -binary | base64."""
    policy = directives(content_security_policy("<style>x</style><script>alert(1)</script>"))
    assert policy["script-src"] == ["'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"]
    assert directives(content_security_policy("<p></p>"))["script-src"] == ["'none'"]
