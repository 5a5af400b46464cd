"""The web page: one HTML file, put together from the files of `page_parts`, and the headers that go with it.

The page asks `v1/models`, `v1/chat/completions` and `v1/render` of the server that it comes from, with the key that a
person gives it as `Authorization: Bearer KEY`. It holds nothing by itself. So a server with keys may answer `GET /`
without a key with the status 401 and this page as the body, which then asks for the key.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

PARTS = Path(__file__).with_name("page_parts")
SCRIPTS = ("base.js", "inline.js", "blocks.js", "server.js", "column.js", "page.js")  # in this order


async def show_page(request: Request) -> Response:
    """`GET /`."""
    return page_response(200)


def page_response(status: int) -> Response:
    """The page with a status."""
    return Response(page(), status, page_headers())


@functools.cache
def page() -> bytes:
    """The page as the server sends it, with styles and scripts inside, so that one request loads all of it."""
    scripts = "\n".join(map(_part, SCRIPTS))
    html = _part("page.html").replace("<style></style>", f"<style>\n{_part('page.css')}</style>")
    return html.replace("<script></script>", f"<script>\n{scripts}</script>").encode()


@functools.cache
def page_headers() -> Mapping[str, str]:
    """Headers of the page: only its own script and styles count, and they can reach its own server alone."""
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": content_security_policy(page().decode()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }


def content_security_policy(html: str) -> str:
    """The strictest policy under which a page works: its scripts and styles are named by their sha256, so a script
    from elsewhere does not run, and no text can become HTML (`require-trusted-types-for`).
    """
    rules = {
        "default-src": "'none'",
        "script-src": _sources(html, "script"),
        "style-src": _sources(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",  # the empty icon, so that a browser does not ask for favicon.ico
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _sources(html: str, tag: str) -> str:
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
