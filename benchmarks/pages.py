"""Pictures of HTML pages in a real browser, light, dark and as wide as a phone; a page that is cut there is named.

    python benchmarks/pages.py runs/quickstart/report.html runs/ablation/results.html --out pictures

Needs Playwright and an installed Chromium. Exit code 1 if a page is wider than the screen, a chart is wider than the
page, or a page asks for anything that is not in its file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.browser import chromium

SCREENS = {"light": (1100, "light"), "dark": (1100, "dark"), "phone": (400, "light"), "phone-dark": (400, "dark")}
# Charts that are shown (those for other screens are not laid out) and end beyond the page.
CUT_CHARTS = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().right > innerWidth).length"


def problems(browser: Any, page_file: Path, screen: str, picture: Path) -> Iterator[str]:
    """What is wrong with a page on a screen. Writes its picture."""
    width, scheme = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, requests = context.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.resolve().as_uri())
    page.screenshot(path=str(picture), full_page=True)
    found = page.evaluate("document.documentElement.scrollWidth")
    cut = page.evaluate(CUT_CHARTS)
    context.close()
    if found > width:
        yield f"{found} pixels wide on a screen of {width}"
    if cut:
        yield f"{cut} chart(s) cut at the edge"
    if len(requests) > 1:
        yield f"asks for {', '.join(requests[1:])}"


def main() -> int:
    """Write the pictures and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of the pictures (default pictures)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    num_problems = 0
    with chromium() as browser:
        for number, page_file in enumerate(options.pages):
            for screen in SCREENS:
                picture = options.out / f"{number}-{page_file.stem}-{screen}.png"
                found = list(problems(browser, page_file, screen, picture))
                num_problems += len(found)
                print(f"{picture}: {'; '.join(found) or 'whole'}")
    return 1 if num_problems else 0


if __name__ == "__main__":
    sys.exit(main())
