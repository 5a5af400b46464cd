"""Makes docs/report.png, the picture of the README: the top of a run's report, as Chromium shows it.

./launch.sh && python docs/make_report_picture.py runs/quickstart docs/report.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from ochat_train.report.run_page import write_run_page

_WIDTH, _HEIGHT = 1000, 1250  # CSS pixels
_MOST_BYTES = 200_000


def main() -> None:
    """Write the picture; ends with an error where it is larger than a README should load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--chromium", help="program to use; default: the one that Playwright has installed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "report.html"
        write_run_page(options.run, page_file)
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.screenshot(path=options.picture)
        browser.close()
    size = options.picture.stat().st_size
    if size > _MOST_BYTES:
        raise SystemExit(f"{options.picture}: {size:,} bytes are more than {_MOST_BYTES:,}")


if __name__ == "__main__":
    main()
