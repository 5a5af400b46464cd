"""What a run does about its push, as a pure function: every state of process and push, while training and after it."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ochat_train.hub.push_state import Action, Candidate, Phase, ProcessStatus, PushState, failure, next_action

REPO = "alice/run"
CANDIDATE = Candidate(folder=Path("step-4"), step=4, sha256="new", num_bytes=10)

NEVER = ProcessStatus(is_running=False)
RUNNING = ProcessStatus(is_running=True)
ENDED = ProcessStatus(is_running=False, exit_code=0)
DIED = ProcessStatus(is_running=False, exit_code=-signal.SIGKILL)
PROCESSES = (NEVER, RUNNING, ENDED, DIED)

NOTHING, WAIT, START = Action.NOTHING, Action.WAIT, Action.START
CANCEL, DONE, GIVE_UP = Action.CANCEL, Action.DONE, Action.GIVE_UP


def push(doing: str, checkpoint: str = "new", repo: str = REPO) -> PushState:
    return PushState(repo=repo, step=4, checkpoint=checkpoint, doing=doing)


PUSHED, OLD_PUSHED, ELSEWHERE = push("pushed"), push("pushed", "old"), push("pushed", repo="alice/another")
UPLOADING, OLD_UPLOADING, OLD_EXPORTING = push("uploading"), push("uploading", "old"), push("exporting", "old")
FAILED, OLD_FAILED = push("failed"), push("failed", "old")

# process and state -> what the run does while it trains, when it is trained, and after its last try
CASES: list[tuple[ProcessStatus, PushState | None, tuple[Action, Action, Action]]] = [
    # nothing was pushed yet
    (NEVER, None, (START, START, GIVE_UP)),
    (RUNNING, None, (NOTHING, WAIT, WAIT)),
    (ENDED, None, (START, START, GIVE_UP)),
    (DIED, None, (START, START, GIVE_UP)),
    # the right checkpoint is on the Hub, whatever became of the process
    *((process, PUSHED, (DONE, DONE, DONE)) for process in PROCESSES),
    # another checkpoint is there, or the right one in another repository
    *((NEVER, state, (START, START, GIVE_UP)) for state in (OLD_PUSHED, ELSEWHERE)),
    *((ENDED, state, (START, START, GIVE_UP)) for state in (OLD_PUSHED, ELSEWHERE)),
    *((RUNNING, state, (NOTHING, WAIT, WAIT)) for state in (OLD_PUSHED, ELSEWHERE)),  # it has not chosen yet
    # the right one is on its way, or the process for it was killed, this one's or an earlier run's
    (RUNNING, UPLOADING, (NOTHING, WAIT, WAIT)),
    (DIED, UPLOADING, (START, START, GIVE_UP)),
    (NEVER, UPLOADING, (START, START, GIVE_UP)),
    # one that is no longer the right one: while training it is left alone, after it nobody waits for it
    (RUNNING, OLD_UPLOADING, (NOTHING, CANCEL, WAIT)),
    (RUNNING, OLD_EXPORTING, (NOTHING, CANCEL, WAIT)),
    (DIED, OLD_UPLOADING, (START, START, GIVE_UP)),
    # a failed push is tried again at every checkpoint and once at the end
    (ProcessStatus(is_running=False, exit_code=1), FAILED, (START, START, GIVE_UP)),
    (ProcessStatus(is_running=False, exit_code=1), OLD_FAILED, (START, START, GIVE_UP)),
    (NEVER, FAILED, (START, START, GIVE_UP)),
    (RUNNING, FAILED, (NOTHING, WAIT, WAIT)),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_a_run_does_next(number: int) -> None:
    process, state, expected = CASES[number]
    found = tuple(next_action(process, state, CANDIDATE, repo=REPO, phase=phase) for phase in Phase)
    assert found == expected


@pytest.mark.parametrize("process", PROCESSES)
def test_without_a_checkpoint_nothing_is_started(process: ProcessStatus) -> None:
    actions = [next_action(process, PUSHED, None, repo=REPO, phase=phase) for phase in Phase]
    assert actions == ([NOTHING, WAIT, WAIT] if process.is_running else [NOTHING, GIVE_UP, GIVE_UP])


def simulate(outcomes: list[PushState | None], *, running: PushState | None = None) -> tuple[list[Action], bool]:
    """A run at its end whose processes leave these states behind, one after the other; each is polled three times.

    running: what a process from the training is doing at that moment; None if none runs. Returns what the run did,
    without waits, and whether it ended with the model on the Hub.
    """
    process, state, phase, polls = (NEVER if running is None else RUNNING), running, Phase.FINISHED, 0
    left, done = iter(outcomes), list[Action]()
    for _ in range(50):
        action = next_action(process, state, CANDIDATE, repo=REPO, phase=phase)
        if action is not WAIT:
            done.append(action)
        if action in (DONE, GIVE_UP):
            return done, action is DONE
        if action is CANCEL:
            process = DIED
        elif action is START:
            process, state, phase, polls = RUNNING, None, Phase.LAST_TRY, 0
        elif action is WAIT:
            polls += 1
            if polls == 3:
                process, state, polls = ENDED, next(left), 0
    raise AssertionError("the run never ends")


def test_a_run_ends_whatever_its_processes_leave_behind() -> None:
    states = (None, PUSHED, OLD_PUSHED, ELSEWHERE, UPLOADING, OLD_UPLOADING, FAILED)
    for running, first, second in itertools.product(states, states, states):
        done, is_on_hub = simulate([first, second], running=running)
        assert done.count(START) <= 1  # at the end it tries once
        assert is_on_hub == (done[-1] is DONE)
        assert is_on_hub or START in done  # and never gives up without that try


def test_an_obsolete_upload_is_replaced_and_a_right_one_is_not() -> None:
    assert simulate([PUSHED], running=OLD_UPLOADING) == ([CANCEL, START, DONE], True)
    assert simulate([PUSHED], running=UPLOADING) == ([DONE], True)
    assert simulate([FAILED, PUSHED], running=UPLOADING) == ([START, DONE], True)
    assert simulate([FAILED, FAILED], running=UPLOADING) == ([START, GIVE_UP], False)


@pytest.mark.parametrize(
    ("process", "state", "expected"),
    [
        (NEVER, None, None),
        (RUNNING, UPLOADING, None),
        (ENDED, PUSHED, None),
        (ENDED, OLD_PUSHED, None),
        (ProcessStatus(is_running=False, exit_code=1), replace(FAILED, error="no right"), "no right"),
        (DIED, UPLOADING, "the process ended early (code -9), see runs/x/hub/log.txt"),
        (DIED, None, "the process ended early (code -9), see runs/x/hub/log.txt"),
        (ENDED, None, None),
    ],
)
def test_why_a_process_did_not_push(process: ProcessStatus, state: PushState | None, expected: str | None) -> None:
    assert failure(process, state, log=Path("runs/x/hub/log.txt")) == expected
