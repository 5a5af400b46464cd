"""A chat as training data: rows of the format `messages`, which `ochat prepare` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.files import cannot_write
from ochat_train.chat.answerer import ChatError
from ochat_train.chat.session import Lane, Session


def save(session: Session, path: Path, *, model: str, default: str | None) -> str:
    """Write a row for each lane to a new file, and return what was written, for people.

    default: the condition of lanes that name none. Raises ChatError for a file that exists or cannot be written, and
    for a chat without answers.
    """
    rows = [row_of(lane, session, model=model, default=default) for lane in session.lanes if lane.turns]
    if not rows:
        raise ChatError("there is nothing to save: no message was answered")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        _write_new(path, text)
    except FileExistsError:
        raise ChatError(f"{path}: exists; name another file") from None
    except OSError as error:
        raise ChatError(str(cannot_write(path, error, "make room there, or name another file"))) from None
    except ValueError as error:  # a name with a null character
        raise ChatError(f"this is not a name of a file: {error}") from None
    said = f"{path}: {len(rows)} conversation{'s' if len(rows) > 1 else ''}, format `messages`"
    if num_cut := sum(not turn.is_whole for lane in session.lanes for turn in lane.turns):
        said += f"; {num_cut} of the answers end in the middle, and have `weight: 0`"
    if not all("condition" in row for row in rows):
        said += "; without `condition` where it changed during a conversation"
    return said


def _write_new(path: Path, text: str) -> None:
    """Write a new file; nothing is left of it where that fails, so that its name can be used again."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
        except OSError:
            path.unlink()
            raise


def row_of(lane: Lane, session: Session, *, model: str, default: str | None) -> dict[str, Any]:
    """A lane as a row. Answers that end in the middle have the weight 0, so that nobody trains on them."""
    row = {"messages": list(_messages(lane, session.system)), "model": model}
    conditions = {default if turn.condition is None else turn.condition for turn in lane.turns}
    return {**row, "condition": conditions.pop()} if len(conditions) == 1 else row


def _messages(lane: Lane, system: str) -> Iterator[dict[str, Any]]:
    if system:
        yield {"role": "system", "content": system}
    for turn in lane.turns:
        yield {"role": "user", "content": turn.user}
        weight = {} if turn.is_whole else {"weight": 0}
        yield {"role": "assistant", "content": turn.answer, **weight}
