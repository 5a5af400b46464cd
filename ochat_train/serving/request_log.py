"""One line of JSON for each request, in a file that is rotated, without keys and by default without texts."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.files import cannot_write
from ochat_train.system.messages import print_message

_FILE_BYTES, _NUM_FILES = 50 * 2**20, 5


@dataclass
class RequestRecord:
    """What is known of a request when it has ended; the handlers fill it in.

    route: one of the server's own, never the path that was sent. finish: why each answer ended; `cancelled` where the
    client left. error: the code of the error. texts: only with `--log-texts`.
    """

    id: str
    time: str
    method: str
    route: str = "unknown"
    status: int = 0
    seconds: float = 0.0
    seconds_to_first_token: float | None = None
    model: str | None = None
    condition: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish: list[str] = field(default_factory=list)
    error: str | None = None
    texts: dict[str, Any] | None = None


class RequestLog:
    """Where records go. file: None for no file. prints: whether a short line of each goes to standard error."""

    def __init__(self, *, file: Path | None, prints: bool, with_texts: bool = False) -> None:
        self.with_texts, self._prints = with_texts, prints
        self._handler = None if file is None else _RotatingFile(file)

    def write(self, record: RequestRecord) -> None:
        """Write one record. A full disk loses the line and is said once; it ends no request."""
        if self._handler is not None:
            values = {name: value for name, value in asdict(record).items() if value not in (None, [])}
            line = json.dumps(values, ensure_ascii=True)
            self._handler.handle(logging.LogRecord("ochat.requests", logging.INFO, "", 0, line, None, None))
        if self._prints and record.route not in ("/health", "/metrics"):
            print_message(_short(asdict(record)))

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            self._handler.close()


class _RotatingFile(logging.handlers.RotatingFileHandler):
    """Made so that only its owner can read it. Where others move or remove the file (logrotate does), it is made
    again; otherwise lines would go to a file that nobody finds.
    """

    def __init__(self, file: Path) -> None:
        self._has_failed = False
        self._file: tuple[int, int] | None = None  # device and number of the open one
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(file, maxBytes=_FILE_BYTES, backupCount=_NUM_FILES, encoding="utf-8")
        except OSError as error:
            raise cannot_write(file, error, option="--log-file") from None

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        status = os.fstat(descriptor)
        self._file = (status.st_dev, status.st_ino)
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            self._open_again_if_moved()
        except OSError:
            self.handleError(record)
            return
        super().emit(record)

    def _open_again_if_moved(self) -> None:
        try:
            status = os.stat(self.baseFilename)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.baseFilename), exist_ok=True)
        else:
            if (status.st_dev, status.st_ino) == self._file and self.stream is not None:
                return
        if self.stream is not None:
            stream, self.stream = self.stream, None
            with suppress(OSError):  # on a full disk
                stream.close()
        self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_failed:
            self._has_failed = True
            print_message(f"warning: {self.baseFilename} cannot be written; requests are no longer logged there")

    def close(self) -> None:
        """Close the file. What a full disk did not take was said before."""
        with suppress(OSError):
            super().close()


def _short(values: Mapping[str, Any]) -> str:
    parts = [f"{values['method']} {values['route']} {values['status']}", f"{values['seconds']:.2f} s"]
    if values["prompt_tokens"]:
        parts.append(f"{values['prompt_tokens']} + {values['answer_tokens']} tokens")
    if values["condition"]:
        parts.append(f"condition {values['condition']!r}")
    parts += [text for text in (*values["finish"], values["error"]) if text and text != "stop"]
    return f"{values['id'][-8:]} {', '.join(parts)}"
