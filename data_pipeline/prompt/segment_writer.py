"""What puts the segments of a prompt together: texts of a template, and what a person or a model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from data_pipeline.conversation import ControlToken, Message, Role, Segment, Span, Text
from data_pipeline.prompt.template import CONDITION, AnswerTurn, NextRole, PreviousRole, Template, Turn

# texts of the template; with a segment where one is a control token
_Pieces = tuple[tuple[str, "ControlToken | None"], ...]
_MOST_FRAMES = 1024  # a format has some dozens


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """What a template writes around the only text of a message, where a control token ends it.

    before: segments in front of its own. prefix: of its own segment. lead: in front of its text. trim: of the text.
    end: the control token. after: the prefix of the next segment.
    """

    before: tuple[Segment, ...]
    prefix: str
    lead: str
    trim: bool
    end: str
    after: str


# role before, role, role behind, and the prefix that is waiting
_FrameKey = tuple["PreviousRole | None", Role, "NextRole | None", str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What has been made of a template under a condition. frames: None where a message cannot be written with one."""

    pieces: dict[str, _Pieces] = field(default_factory=dict)
    frames: dict[_FrameKey, _Frame | None] = field(default_factory=dict)


@lru_cache(maxsize=1024)
def _known(template: Template, condition: str) -> _Known:
    """What `Writer` keeps; it fills it."""
    return _Known()


@lru_cache(maxsize=1024)
def _control(text: str, weight: float) -> ControlToken:
    return ControlToken(text=text, weight=weight)


def _compiled(template: Template, text: str, condition: str) -> _Pieces:
    """A text of the template in pieces. The condition is written last, so nothing of it becomes a control token."""
    written = template.condition_text(condition)
    pieces = ((piece, template.is_control(piece)) for piece in template.pieces(text))
    return tuple(
        (piece, ControlToken(text=piece)) if is_control else (piece.replace(CONDITION, written), None)
        for piece, is_control in pieces
    )


class Writer:
    """Collects what is written, and joins the texts between control tokens."""

    def __init__(self, template: Template, condition: str) -> None:
        self.rules, self._condition = template, condition
        known = _known(template, condition)
        self._pieces, self._frames = known.pieces, known.frames
        self._segments: list[Segment] = []
        self._prefix = ""
        self._spans: list[tuple[str, float]] = []

    def template(self, text: str, weight: float = 0.0) -> None:
        """A text of the template, with its control tokens."""
        if not text:
            return
        pieces = self._pieces.get(text)
        if pieces is None:
            pieces = self._pieces[text] = _compiled(self.rules, text, self._condition)
        for piece, control in pieces:
            if control is not None:
                if self._prefix or self._spans:
                    self._end_text()
                self._segments.append(_control(piece, weight) if weight else control)
            elif weight or self._spans:
                self.content(piece, weight)
            else:
                self._prefix += piece

    def plain(self, message: Message, weight: float, previous: PreviousRole | None, following: NextRole | None) -> bool:
        """A whole message that has nothing but a text, in one step. False where that cannot be: nothing is written.

        The segments are those of `render._write_plain`.
        """
        if self._spans:
            return False
        key = (previous, message.role, following, self._prefix)
        try:
            frame = self._frames[key]
        except KeyError:
            frame = self._framed(*key)
            if len(self._frames) < _MOST_FRAMES:
                self._frames[key] = frame
        if frame is None:
            return False
        text = message.content.strip() if frame.trim else message.content
        if not text:
            return False
        if frame.before:
            self._segments += frame.before
        content = frame.lead + text if frame.lead else text
        self._segments.append(Text(prefix=frame.prefix, content=content, weight=weight))
        self._segments.append(_control(frame.end, weight))
        self._prefix = frame.after
        return True

    def _framed(
        self, previous: PreviousRole | None, role: Role, following: NextRole | None, waiting: str
    ) -> _Frame | None:
        """The frame of a place, None where the end of the message is not exactly one control token."""
        turn: Turn | None = getattr(self.rules.turns, role)
        if turn is None or (isinstance(turn, AnswerTurn) and turn.begin):
            return None
        place = Place(previous, following, False)
        close, after = _close_of(turn, place)
        if len(self.rules.pieces(close)) != 1 or not self.rules.is_control(close):
            return None
        writer = Writer(self.rules, self._condition)
        writer._prefix = waiting
        write_open(writer, turn, place)
        return _Frame(
            before=tuple(writer._segments),
            prefix=writer._prefix,
            lead=turn.lead,
            trim=turn.trim,
            end=close,
            after=after,
        )

    def control(self, token: str) -> None:
        """A control token that is not the template's."""
        self._segments.append(_control(token, 0.0))

    def content(self, text: str, weight: float) -> None:
        """What a person or a model wrote."""
        if text:
            self._spans.append((text, weight))

    def finished(self) -> tuple[Segment, ...]:
        """All segments."""
        if self._prefix or self._spans:
            self._end_text()
        return tuple(self._segments)

    def _end_text(self) -> None:
        spans = self._spans
        if len(spans) == 1:
            [(content, weight)] = spans
            self._segments.append(Text(prefix=self._prefix, content=content, weight=weight))
        else:
            self._segments.append(_joined(self._prefix, spans))
        self._prefix, self._spans = "", []


def _joined(prefix: str, spans: Sequence[tuple[str, float]]) -> Text:
    content = "".join(text for text, _ in spans)
    weights = {weight for _, weight in spans}
    if len(weights) <= 1:
        return Text(prefix=prefix, content=content, weight=weights.pop() if weights else 0.0)
    return Text(prefix=prefix, content=content, spans=tuple(Span(text=text, weight=weight) for text, weight in spans))


class Place(NamedTuple):
    """Where a message is: the role before it (None at the beginning) and behind it (None at the end), and whether it is
    behind the last user message.
    """

    previous: PreviousRole | None
    following: NextRole | None
    is_after_last_user: bool


def write_open(writer: Writer, turn: Turn, place: Place) -> None:
    """What is before the text of a message."""
    text = turn.open if place.previous is None else turn.open_after.get(place.previous, turn.open)
    writer.template(text)


def write_close(writer: Writer, turn: Turn, weight: float, place: Place) -> None:
    """What ends a message. weight: of its control token."""
    close, after = _close_of(turn, place)
    writer.template(close, weight)
    writer.template(after)


def _close_of(turn: Turn, place: Place) -> tuple[str, str]:
    """What ends a message, and the plain text behind it."""
    if place.following is not None and place.following in turn.close_before:
        return turn.close_before[place.following], ""
    is_last = place.following is None and turn.close_last is not None
    return (turn.close_last or "") if is_last else turn.close, turn.after
