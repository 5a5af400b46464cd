"""`ochat inspect`: a prepared dataset as text, as JSON lines or as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipeline.look.prepared import Inspection, Selection
from data_pipeline.look.text import report
from data_pipeline.prepared.dataset import Split
from data_pipeline.text_rules import visible

_ROWS, _ROWS_OF_PAGE = slice(0, 3), slice(0, 20)  # if not given: of every class, so about as many


def inspect(
    prepared_dir: Path,
    split: Split,
    *,
    rows: slice | None = None,
    class_name: str | None = None,
    conversation_id: str | None = None,
    find: str | None = None,
    with_tokens: bool = False,
    color: bool = False,
    json_lines: bool = False,
    html: Path | None = None,
) -> Iterator[str]:
    """The lines to print: a report, one JSON document a row (json_lines), or the name of the page written to `html`.

    rows: which of the rows that match class_name, conversation_id and find; None for the first few, of every class
    where nothing else is given. The lines hold no control characters of the data.

    Raises UserError where there is no prepared dataset, no row matches, or the page cannot be written.
    """
    shown = rows or (_ROWS if html is None else _ROWS_OF_PAGE)
    selection = Selection(
        start=shown.start,
        stop=shown.stop,
        class_name=class_name,
        conversation_id=conversation_id,
        find=find,
        of_every_class=rows is None and class_name is None and conversation_id is None and find is None,
    )
    inspection = Inspection(prepared_dir, split)
    if json_lines:
        for number in inspection.select(selection):
            yield visible(json.dumps(inspection.document(number), ensure_ascii=False))
    elif html is not None:
        from ochat_train.report.inspect_page import write_inspect_page  # jinja: only a page needs it

        write_inspect_page(inspection, selection, html, with_tokens=with_tokens)
        yield visible(str(html))
    else:
        yield from report(inspection, selection, color=color, with_tokens=with_tokens)


def wants_color(choice: str, *, is_terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether to colour the report. choice: `always`, `never`, or `auto` for a terminal (https://no-color.org)."""
    if choice == "auto":
        return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    return choice == "always"
