"""Renders chat templates as `transformers` does, with limits on time, size and what may decide the text.

A template is a program of somebody else. It runs in Jinja's sandbox, without files and without a clock.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_TEMPLATE_CHARACTERS = 1 << 20
MOST_SECONDS = 5.0  # of one prompt
_LEAST_OUTPUT_CHARACTERS = 1 << 24
_MOST_TIMES_LONGER = 64  # a prompt than what it is made of
_MOST_REPEATED = 1 << 20  # of `text * number`
# Around what a `{% generation %}` block writes. No text may hold them (`marked`).
BLOCK_OPEN, BLOCK_CLOSE = "\ufdd1", "\ufdd2"
_MOST_LEVELS = 150  # of a parsed template, in which `a + b + c` has one level for each `+`
_TOO_DEEP = "it is nested too deeply"


class TemplateFault(Exception):
    """A template cannot be used, or cannot show a conversation. The message is for people."""


class DateAsked(TemplateFault):
    """A template asks for today's date. format: as for `strftime`."""

    def __init__(self, format: str) -> None:
        super().__init__(f"it writes today's date (`strftime_now({format!r})`)")
        self.format = format


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}` of `transformers`: marks what a block writes, where marks are asked for."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = jinja2.nodes.CallBlock(self.call_method("_marked", [jinja2.nodes.ContextReference()]), [], [], body)
        return call.set_lineno(lineno)

    def _marked(self, context: jinja2.runtime.Context, caller: Callable[[], str]) -> str:
        text = caller()
        return f"{BLOCK_OPEN}{text}{BLOCK_CLOSE}" if context.get(_MARKS) else text


_MARKS = "_ochat_marks_blocks"


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with limits on what one operation can make."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateFault("it computes a power (`**`), which no prompt needs")
        if operator == "*" and not _is_small_product(left, right):
            raise TemplateFault("it repeats a text too often (`*`)")
        if operator == "%" and isinstance(left, str) and any(sign.isdigit() for sign in left):
            raise TemplateFault("it formats a text with a width (`%`)")
        return super().call_binop(context, operator, left, right)


def _is_small_product(left: Any, right: Any) -> bool:
    sizes = [abs(value) if isinstance(value, int | float) else len(value) for value in (left, right)]
    return sizes[0] * sizes[1] <= _MOST_REPEATED


def sandbox() -> ImmutableSandboxedEnvironment:
    """The environment in which `transformers` renders chat templates, with limits."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])

    def raise_exception(message: object) -> None:
        raise jinja2.exceptions.TemplateError(str(message))

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    return environment


@dataclass(frozen=True)
class CompiledTemplate:
    """A template that is ready to be rendered. has_blocks: whether it has `{% generation %}` blocks.

    names: the variables that it reads.
    """

    _template: jinja2.Template
    has_blocks: bool
    names: frozenset[str]

    def __call__(self, variables: Mapping[str, Any], *, dates: Mapping[str, str], marks_blocks: bool = False) -> str:
        """The text. dates: what `strftime_now` gives, by format; other formats raise DateAsked.

        Raises TemplateFault where the template fails, refuses the conversation, or goes beyond a limit.
        """

        def strftime_now(format: str) -> str:
            if format not in dates:
                raise DateAsked(format)
            return dates[format]

        context = {"strftime_now": strftime_now, **variables, _MARKS: marks_blocks}
        most = max(_LEAST_OUTPUT_CHARACTERS, _MOST_TIMES_LONGER * _num_characters(variables))
        with _time_limit(MOST_SECONDS):
            try:
                return _joined(self._template.generate(context), most)
            except TemplateFault:
                raise
            except jinja2.exceptions.TemplateError as error:
                raise TemplateFault(f"it says: {_first_line(error)}") from None
            except Exception as error:  # a template is a program: whatever it does wrong
                raise TemplateFault(f"it fails: {type(error).__name__}: {_first_line(error)}") from None


def _joined(parts: Iterator[str], most: int) -> str:
    found, length = [], 0
    for part in parts:
        found.append(part)
        length += len(part)
        if length > most:
            raise TemplateFault(f"its text has more than {most:,} characters")
    return "".join(found)


def _num_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _num_characters(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_num_characters, value))
    return 8


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TemplateFault in the main thread after so many seconds. Other threads have no limit: `probe.py` has tried
    the template in another process before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TemplateFault(f"it does not end within {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@lru_cache(maxsize=64)
def compiled(text: str) -> CompiledTemplate:
    """A template, compiled once in each process. Raises TemplateFault for text that is not a template, and for one that
    does not always write the same.
    """
    if len(text) > MOST_TEMPLATE_CHARACTERS:
        raise TemplateFault(f"it has more than {MOST_TEMPLATE_CHARACTERS:,} characters")
    # In another thread, with an empty stack: how much nesting fits does not depend on who calls.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_compiled, text).result()


def _compiled(text: str) -> CompiledTemplate:
    environment = sandbox()
    try:
        tree = environment.parse(text)
        if _is_too_deep(tree):
            raise TemplateFault(_TOO_DEEP)
        _refuse_what_changes(tree)
        template = environment.from_string(text)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise TemplateFault(f"it is not a Jinja template: line {error.lineno}: {_first_line(error)}") from None
    except (RecursionError, SyntaxError):  # Jinja writes Python, which takes 20 loops inside each other
        raise TemplateFault(_TOO_DEEP) from None
    names = {node.name for node in tree.find_all(jinja2.nodes.Name)}
    return CompiledTemplate(template, has_blocks=_has_blocks(tree), names=frozenset(names))


def _is_too_deep(tree: jinja2.nodes.Node) -> bool:
    level: list[jinja2.nodes.Node] = [tree]
    for _ in range(_MOST_LEVELS):
        level = [child for node in level for child in node.iter_child_nodes()]
    return bool(level)


def _has_blocks(tree: jinja2.nodes.Template) -> bool:
    marks = (node.call.node for node in tree.find_all(jinja2.nodes.CallBlock))
    return any(isinstance(node, jinja2.nodes.ExtensionAttribute) for node in marks)


def _refuse_what_changes(tree: jinja2.nodes.Template) -> None:
    """Raise TemplateFault for names and filters that give another text each time, and for parts in other files."""
    for kind in (jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport, jinja2.nodes.Extends):
        if next(tree.find_all(kind), None) is not None:
            raise TemplateFault("it needs other files (`include`, `import` or `extends`)")
    if next(tree.find_all(jinja2.nodes.Block), None) is not None:
        raise TemplateFault("it has named blocks (`{% block %}`), which are not supported")
    for node in tree.find_all(jinja2.nodes.Filter):
        if node.name == "random":
            raise TemplateFault("it writes text by chance (`random`)")
    for name in tree.find_all(jinja2.nodes.Name):
        if name.name == "lipsum":
            raise TemplateFault("it writes text by chance (`lipsum`)")
