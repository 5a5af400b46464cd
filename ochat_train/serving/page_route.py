"""`GET /`: the page, which holds nothing by itself.

With API keys a browser that opens it without one gets the same page as the body of a 401: the page then asks a person
for the key, and sends it with every request that it makes.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ochat_train.serving.page import page, page_headers


async def show_page(request: Request) -> Response:
    """The page."""
    return page_response(200)


def page_response(status: int) -> Response:
    """The page with a status."""
    return Response(page(), status, page_headers())
