"""`ochat push` against a stand-in of the Hub: every byte arrives, temporary faults are retried, others are one
error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from data_pipeline.errors import UserError
from data_pipeline.hub_names import hub_name_problem
from ochat_train.check.findings import run_checks
from ochat_train.check.hub import check_push
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.cli.main import main
from ochat_train.hub import push as push_module
from ochat_train.hub.push import push
from ochat_train.hub.repository import read_repo
from ochat_train.hub.retry import RetryPolicy, retry
from ochat_train.hub.rights import check_recipe_rights, first_contact
from ochat_train.recipe.load import load_recipe
from ochat_train.system import exits
from tests.support.hub import (
    Clock,
    client_of,
    content_of,
    content_on_hub,
    environment_of,
    make_export,
    pseudo_random,
    quick_clock,
    sha256_of,
    silent_hub,
    write_mark,
)
from tests.support.hub_stand_in import Fault, HubStandIn
from tests.support.processes import PYTHONPATH, ROOT
from tests.support.small_recipe import RecipeFactory
from tests.support.waiting import wait_for

REPO = "alice/model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with client_of(tmp_path / "hub", monkeypatch) as server:
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return quick_clock(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_export(tmp_path / "export")


def facts_of(recipe: Path) -> RecipeFacts:
    return RecipeFacts(recipe=load_recipe(recipe), num_gpus=1, gpu_memory_gib=80.0)


def refusal(folder: Path, clock: Clock, repo: str = REPO, *, overwrite: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        push(folder, repo, policy=clock.policy, overwrite=overwrite)
    return str(caught.value)


# ---- what arrives ----


def test_every_byte_arrives_in_a_private_repository_in_one_commit(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    pushed = push(folder, REPO, message="first", policy=clock.policy)
    assert content_on_hub(hub, REPO) == content_of(folder)
    repo = hub.repo(REPO)
    assert repo["private"] is True
    assert [commit["title"] for commit in repo["commits"]] == ["initial commit", "first"]
    assert pushed.commit == repo["branches"]["main"]
    assert pushed.as_json() == {
        "repo": REPO,
        "url": f"{hub.url}/{REPO}",
        "commit": pushed.commit,
        "private": True,
        "files": 4,
        "bytes": sum(map(len, content_of(folder).values())),
        "files_changed": 4,
        "card_left": False,
        "verified": True,
    }
    assert clock.waits == clock.library_waits == []
    stored = b"".join(path.read_bytes() for path in hub.folder.rglob("*") if path.is_file())
    assert b"hf_alice" not in stored
    assert REPO.encode() not in stored


def test_a_second_push_sends_nothing(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    first = push(folder, REPO, policy=clock.policy)
    hub.requests.clear()
    again = push(folder, REPO, policy=clock.policy)
    assert (again.commit, again.num_new) == (first.commit, 0)
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_a_changed_file_is_the_only_one_that_is_sent(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    push(folder, REPO, policy=clock.policy)
    uploaded = hub.uploaded
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Edited by hand\n")
    assert push(folder, REPO, policy=clock.policy).num_new == 1
    assert hub.uploaded == uploaded
    assert content_on_hub(hub, REPO) == content_of(folder)


def test_large_files_in_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    clock = quick_clock(monkeypatch)
    with client_of(tmp_path / "hub", monkeypatch, part_bytes=70_000) as hub:
        hub.add(Fault(request="PUT /objects/*", times=2, status=503))
        push(folder, REPO, policy=clock.policy)
        assert content_on_hub(hub, REPO) == content_of(folder)
        assert sum(request.startswith("PUT /objects/") for request in hub.requests) == 5 + 2


def test_weights_of_an_earlier_model_go_in_the_same_commit(hub: HubStandIn, tmp_path: Path, clock: Clock) -> None:
    push(make_export(tmp_path / "old", shards=3), REPO, policy=clock.policy)
    hub.put(REPO, {"picture.png": b"png"})
    new = make_export(tmp_path / "new", seed=1)
    push(new, REPO, policy=clock.policy)
    assert content_on_hub(hub, REPO) == {**content_of(new), "picture.png": b"png"}
    assert len(hub.repo(REPO)["commits"]) == 4  # the initial one, old, the picture, new


def test_every_file_of_an_earlier_export_goes_and_nothing_else(hub: HubStandIn, tmp_path: Path, clock: Clock) -> None:
    old = make_export(tmp_path / "old")
    (old / "added_tokens.json").write_text("{}")
    write_mark(old)
    (old / "NOTICE").write_text("Added beside the export, so not in its list.")
    push(old, REPO, policy=clock.policy)
    hub.put(REPO, {"model-mine.safetensors.txt": b"mine"})
    new = make_export(tmp_path / "new", seed=1)
    push(new, REPO, policy=clock.policy)
    beside = {"NOTICE": (old / "NOTICE").read_bytes(), "model-mine.safetensors.txt": b"mine"}
    assert content_on_hub(hub, REPO) == {**content_of(new), **beside}


def test_a_card_that_was_edited_on_the_hub_stays(
    hub: HubStandIn, tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    push(make_export(tmp_path / "old"), REPO, policy=clock.policy)
    edited = b"---\nlicense: mit\n---\n\n# Written by hand\n"
    hub.put(REPO, {"README.md": edited})
    new = make_export(tmp_path / "new", seed=1)
    (new / "README.md").write_text("---\nlicense: other\n---\n\n# Step 2\n")
    write_mark(new)
    pushed = push(new, REPO, policy=clock.policy)
    assert content_on_hub(hub, REPO) == {**content_of(new), "README.md": edited}
    assert pushed.as_json()["card_left"] is True
    assert main(["push", str(new), "--repo", REPO]) == 0
    assert "README.md was edited there and is kept; `ochat push --overwrite`" in capsys.readouterr().out
    assert push(new, REPO, overwrite=True, policy=clock.policy).card_left is False
    assert content_on_hub(hub, REPO) == content_of(new)


def test_a_branch_is_made_and_main_stays(hub: HubStandIn, tmp_path: Path, clock: Clock) -> None:
    old, new = make_export(tmp_path / "old"), make_export(tmp_path / "new", seed=1)
    push(old, REPO, policy=clock.policy)
    pushed = push(new, REPO, revision="v2", policy=clock.policy)
    assert pushed.url == f"{hub.url}/{REPO}/tree/v2"
    assert content_on_hub(hub, REPO) == content_of(old)
    assert content_on_hub(hub, REPO, "v2") == content_of(new)


def test_an_adapter_is_pushed_if_everybody_can_have_its_base(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)}), encoding="utf-8")
    write_mark(folder)
    assert "--base ORG/NAME" in refusal(folder, clock)
    config.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "alice/base"}), encoding="utf-8")
    write_mark(folder)
    push(folder, REPO, policy=clock.policy)
    assert content_on_hub(hub, REPO)[config.name] == config.read_bytes(), "the control"


def test_licences_and_notes_may_lie_beside_an_export(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    (folder / "LICENSE.txt").write_text("You may.")
    push(folder, REPO, policy=clock.policy)
    assert hub.read(REPO, "LICENSE.txt") == b"You may."


# ---- temporary faults ----

COMMIT = f"POST /api/models/{REPO}/commit/main"
PASSING = {
    "server error at first contact": Fault(request="GET /api/whoami-v2", times=3, status=502),
    "server error for a file": Fault(request="PUT /objects/*", times=3, status=500),
    "server error for the commit": Fault(request=COMMIT, times=2, status=503),
    "cut in the middle of a file": Fault(request="PUT /objects/*", cut_after=100_000),
    "cut again and again, longer than the library tries": Fault(request="PUT /objects/*", cut_after=1, times=8),
    "cut in the middle of the commit": Fault(request=COMMIT, cut_after=200),
    "answer to the commit lost": Fault(request=COMMIT, lose_answer=True),
    "answer to the making of the repository lost": Fault(request="POST /api/repos/create", lose_answer=True),
    "somebody commits in between": Fault(request=COMMIT, status=412),
    "verification cut": Fault(request=f"GET /api/models/{REPO}/tree/*", times=7, status=504),
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass_are_outlived(name: str, hub: HubStandIn, folder: Path, clock: Clock) -> None:
    fault = hub.add(Fault(**{**vars(PASSING[name])}))
    push(folder, REPO, policy=clock.policy)
    assert fault.times == 0
    assert content_on_hub(hub, REPO) == content_of(folder)
    assert len(hub.repo(REPO)["commits"]) == 2  # whatever was tried twice, was done once
    assert len(clock.waits) + len(clock.library_waits) >= 1


@pytest.mark.parametrize("error", [RuntimeError("CAS service error"), ConnectionResetError(), TimeoutError()], ids=repr)
def test_what_xet_raises_is_tried_again(
    error: Exception, hub: HubStandIn, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in has no Xet; its errors are raised where they come up."""
    real, failures = huggingface_hub.HfApi.create_commit, [error]

    def failing_once(*arguments: object, **options: object) -> object:
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", failing_once)
    push(folder, REPO, policy=clock.policy)
    assert len(clock.waits) == 1
    assert content_on_hub(hub, REPO) == content_of(folder)


@pytest.mark.parametrize(
    "header", [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=7'}], ids=["Retry-After", "RateLimit"]
)
@pytest.mark.parametrize("request_", ["GET /api/whoami-v2", COMMIT])
def test_the_hub_says_how_long_to_wait(
    request_: str, header: dict[str, str], hub: HubStandIn, folder: Path, clock: Clock
) -> None:
    hub.add(Fault(request=request_, status=429, headers=header))
    push(folder, REPO, policy=clock.policy)
    assert clock.waits == [7.0]
    assert content_on_hub(hub, REPO) == content_of(folder)


def test_waits_double_and_end(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.add(Fault(request=COMMIT, times=1000, status=500))
    said = refusal(folder, clock)
    assert "HTTP 500 (a fault of the stand-in); gave up after 8 tries" in said
    assert "what has been uploaded is not sent again" in said
    for wait, longest in zip(clock.waits, [1, 2, 4, 8, 16, 32, 60], strict=True):
        assert 0.75 * longest <= wait <= longest
    uploaded = hub.uploaded
    hub.faults.clear()
    push(folder, REPO, policy=clock.policy)
    assert hub.uploaded == uploaded


def test_a_pause_that_is_too_long_is_not_waited_for(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.add(Fault(request=COMMIT, times=1000, status=429, headers={"Retry-After": "86400"}))
    assert "it asks for a pause of 86400 s" in refusal(folder, clock)
    assert clock.waits == []


def test_killed_in_the_middle_and_started_again(hub: HubStandIn, tmp_path: Path, clock: Clock) -> None:
    """Two of three files have arrived, half of the third, when the process is killed: only the third is sent again."""
    size = 400_000
    folder = make_export(tmp_path / "big", shards=3, num_bytes=size)
    held = hub.add(
        Fault(request=f"PUT /objects/{sha256_of(folder / 'model-00002-of-00003.safetensors')}", hold_after=200_000)
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from ochat_train.cli.main import run_as_script; run_as_script()",
            "push",
            str(folder),
            "--repo",
            REPO,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment_of(hub)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert held.reached.wait(120)
    wait_for(lambda: len([p for p in (hub.folder / "objects").iterdir() if not p.name.startswith(".")]) == 2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    held.go_on.set()
    assert content_on_hub(hub, REPO) == {}  # half a model is never to be seen
    before = hub.uploaded
    assert 2 * size + 200_000 <= before < 3 * size
    push(folder, REPO, policy=clock.policy)
    assert hub.uploaded - before == size
    assert content_on_hub(hub, REPO) == content_of(folder)


# ---- verification ----


def test_a_large_file_that_is_broken_on_the_hub_is_noticed(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    push(folder, REPO, policy=clock.policy)
    stored = hub.folder / "objects" / sha256_of(folder / "model.safetensors")
    content = bytearray(stored.read_bytes())
    content[1000] ^= 1
    stored.write_bytes(content)
    said = refusal(folder, clock)
    assert "1 of 4 files differ from the folder: model.safetensors" in said
    assert sha256_of(stored) in said
    assert sha256_of(folder / "model.safetensors") in said


def test_a_small_file_that_is_broken_on_the_hub_is_mended(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    push(folder, REPO, policy=clock.policy)
    [blob] = [path for path in hub.repo_folder(REPO).glob("blobs/*") if b"mistral" in path.read_bytes()]
    blob.write_bytes(blob.read_bytes().replace(b"mistral", b"mistrel"))
    assert push(folder, REPO, policy=clock.policy).num_new == 1
    assert content_on_hub(hub, REPO) == content_of(folder)


# ---- rights ----


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        ("hf_bogus", REPO, ["does not accept the token (HTTP 401)", "write access", "HF_TOKEN"]),
        ("hf_reader", REPO, ["may only read", "HF_TOKEN"]),
        ("hf_narrow", REPO, ["lacks the right `repo.write`", "HF_TOKEN"]),
        ("hf_mallory", REPO, ["belongs to mallory, who cannot write to alice", "HF_TOKEN"]),
        ("hf_alice", "club/model", ["role `read` in club"]),
        ("hf_alice", "Club/model", ["role `read` in Club"]),
        ("hf_alice", "nobody/model", ["cannot write to nobody; it can to: alice, lab, club"]),
        ("hf_alice", "model", ["write ORG/NAME"]),
    ],
)
def test_a_token_without_the_right_is_one_error(
    token: str, repo: str, said: list[str], hub: HubStandIn, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    message = refusal(folder, clock, repo)
    assert all(part in message for part in said), message
    assert token not in message
    assert {request.split()[0] for request in hub.requests} <= {"GET"}
    assert clock.waits == []


@pytest.mark.parametrize("token", ["hf_alice", "hf_exact"])
def test_tokens_with_the_right_pass(
    token: str, hub: HubStandIn, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    push(folder, REPO, policy=clock.policy)
    push(folder, REPO, policy=clock.policy)  # an existing repository is asked in another way
    assert content_on_hub(hub, REPO) == content_of(folder)


def test_a_repository_that_is_there_and_not_ours_to_write(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.make_repo("bob/model", private=False)
    said = refusal(folder, clock, "bob/model")
    assert "may not write there" in said
    assert "write access to bob" in said


def test_a_token_that_comes_back_in_an_error_is_not_shown(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.add(Fault(request=COMMIT, status=400, headers={"X-Error-Message": "bad token hf_alice"}))
    said = refusal(folder, clock)
    assert "bad token ***" in said
    assert "hf_alice" not in said


def test_rights_lost_in_the_middle(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.add(Fault(request=f"POST /api/models/{REPO}/preupload/*", status=403))
    assert "may not write there (HTTP 403" in refusal(folder, clock)


def test_no_token_and_no_network(hub: HubStandIn, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "no connection to http://127.0.0.1:9 (ConnectError" in refusal(folder, clock)
    assert len(clock.waits) == 3
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(folder, clock)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nonexistent")
    assert "there is no token" in refusal(folder, clock)


# ---- a Hub that accepts connections and never answers ----


def test_a_silent_hub_ends_a_request_the_first_contact_and_no_more_than_that(
    make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the request that huggingface_hub asks to have no limit, and a work of many requests."""
    recipe = load_recipe(make_recipe(train__push_to_hub=REPO))
    clock = Clock()
    policy = RetryPolicy(max_tries=2, request_seconds=0.05, sleep=clock.waits.append, report=clock.said.append)
    with silent_hub(monkeypatch):
        with pytest.raises(UserError, match=r"ReadTimeout.*gave up after 2 tries"):
            check_recipe_rights(recipe, policy=policy)
        with pytest.raises(UserError, match=r"ReadTimeout.*gave up after 2 tries"):
            retry(lambda: read_repo(REPO, revision=None), policy, repo=REPO)
        with pytest.raises(UserError, match=r"no answer in time.*gave up after 1 try"):
            check_recipe_rights(recipe, policy=RetryPolicy(total_seconds=0.1))
    assert len(clock.waits) == 2


@pytest.mark.parametrize("hang_timeout", [1800.0, 7.0])
def test_the_first_contact_ends_before_the_other_ranks_give_up(hang_timeout: float) -> None:
    policy = first_contact(RetryPolicy(), hang_timeout_seconds=hang_timeout)
    assert 10 <= policy.request_seconds <= 30
    assert policy.total_seconds <= min(120, hang_timeout)
    strict = RetryPolicy(max_tries=1, request_seconds=0.5, total_seconds=0.5)
    assert first_contact(strict, hang_timeout_seconds=hang_timeout) == strict  # it never makes a policy looser


def test_a_run_does_not_ask_the_hub_longer_than_its_ranks_wait(
    make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(make_recipe(train__push_to_hub=REPO, train__hang_timeout_seconds=0.1))
    with silent_hub(monkeypatch), pytest.raises(UserError, match=r"no answer in time.*gave up after 1 try"):
        check_recipe_rights(recipe, policy=RetryPolicy())


def test_ochat_check_does_not_wait_for_a_silent_hub(
    make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = facts_of(make_recipe(train__push_to_hub=REPO))
    with silent_hub(monkeypatch):
        [found] = run_checks([("push", lambda: check_push(facts, timeout_seconds=0.1))])
    assert found.level == "problem"
    assert "gave up after 1 try" in found.remedy


def test_a_bug_of_ours_goes_through_and_an_answer_that_is_no_json_does_not(clock: Clock) -> None:
    for bug in (KeyError("x"), RuntimeError("x"), AssertionError()):
        with pytest.raises(type(bug)):
            retry(lambda bug=bug: (_ for _ in ()).throw(bug), clock.policy, repo=REPO)
    with pytest.raises(UserError, match="JSONDecodeError"):
        retry(lambda: json.loads("<html>"), clock.policy, repo=REPO)
    assert clock.waits == []


# ---- repositories that a push would hurt ----


def test_somebody_elses_files_are_not_touched(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.make_repo(REPO, private=True)
    hub.put(REPO, {"pytorch_model.bin": b"theirs", "README.md": b"---\nlicense: mit\n---\n"})
    said = refusal(folder, clock)
    assert "has 3 files and no ochat.json" in said
    assert "--overwrite" in said
    assert hub.read(REPO, "pytorch_model.bin") == b"theirs"
    push(folder, REPO, overwrite=True, policy=clock.policy)
    assert content_on_hub(hub, REPO) == content_of(folder)


def test_an_empty_repository_is_taken(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.make_repo(REPO, private=True)
    push(folder, REPO, policy=clock.policy)
    assert content_on_hub(hub, REPO) == content_of(folder)


def test_a_public_repository_wants_to_be_named_so(hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.make_repo(REPO, private=False)
    assert "is public" in refusal(folder, clock)
    assert push(folder, REPO, private=False, policy=clock.policy).private is False
    assert push(folder, "alice/new", private=False, policy=clock.policy).private is False
    assert hub.repo("alice/new")["private"] is False


def test_a_private_repository_stays_private_and_that_is_said(
    hub: HubStandIn, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.make_repo(REPO, private=True)
    assert main(["push", str(folder), "--repo", REPO, "--public"]) == 0
    assert "is private; it stays private, until its settings on the Hub change that" in capsys.readouterr().out
    assert main(["push", str(folder), "--repo", REPO, "--public", "--json"]) == 0
    said = capsys.readouterr()
    assert "it stays private" in said.err
    assert json.loads(said.out)["private"] is True
    assert hub.repo(REPO)["private"] is True
    assert content_on_hub(hub, REPO) == content_of(folder)
    assert main(["push", str(folder), "--repo", REPO]) == 0  # the control: nothing was asked that is not so
    said = capsys.readouterr()
    assert "stays private" not in said.err + said.out


def test_one_that_becomes_public_during_a_private_push_gets_nothing(
    hub: HubStandIn, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.make_repo(REPO, private=True)
    made = push_module._make_repo

    def make_public(repo: str, **options: Any) -> None:
        made(repo, **options)
        content = hub.repo(repo)
        (hub.repo_folder(repo) / "repo.json").write_text(json.dumps({**content, "private": False}))

    monkeypatch.setattr(push_module, "_make_repo", make_public)
    assert "is public" in refusal(folder, clock)
    assert content_on_hub(hub, REPO) == {}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_an_export_that_changes_during_its_push_gives_no_commit(
    name: str, hub: HubStandIn, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its files were compared with the export, and before, or while, they are sent."""
    hub.make_repo(REPO, private=True)
    made = push_module._make_repo

    def change(repo: str, **options: Any) -> None:
        made(repo, **options)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + b"x")

    monkeypatch.setattr(push_module, "_make_repo", change)
    for most_in_memory in (1 << 30, 0):  # the bytes that were looked at, or a file that is read while it is sent
        monkeypatch.setattr(push_module, "_MOST_BYTES_IN_MEMORY", most_in_memory)
        before = (folder / name).read_bytes()
        assert f"{name}: has changed while it was pushed, so nothing was committed" in refusal(folder, clock)
        assert content_on_hub(hub, REPO) == {}
        (folder / name).write_bytes(before)
    monkeypatch.setattr(push_module, "_make_repo", made)
    push(folder, REPO, policy=clock.policy)  # the control
    assert content_on_hub(hub, REPO) == content_of(folder)


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_repository_of_another_type(kind: str, hub: HubStandIn, folder: Path, clock: Clock) -> None:
    hub.make_repo(REPO, private=False, kind=f"{kind}s")
    assert f"is a {kind} on the Hub, not a model" in refusal(folder, clock)
    assert not hub.repo_folder(REPO).exists()


# ---- folders ----


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pseudo_random(300_000, seed="other"))


def spoil_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\n: [\n---\n")


def broken_link(folder: Path) -> None:
    (folder / "LICENSE").symlink_to(folder / "nowhere")


def empty_card(folder: Path) -> None:
    (folder / "README.md").write_text("# No metadata\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "ochat.json").unlink(), "ochat.json is missing"),
        (lambda folder: (folder / "ochat.json").write_text("{}"), "lists no files"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing since the export"),
        (spoil_weights, "model.safetensors has changed since the export"),
        (lambda folder: (folder / ".env").write_text("HF_TOKEN=..."), ".env was not written by `ochat export`"),
        (lambda folder: (folder / "dump.bin").write_bytes(b"1"), "dump.bin was not written by `ochat export`"),
        (spoil_card, "the metadata between the `---` lines cannot be read"),
        (empty_card, "has no metadata"),
        (broken_link, "nowhere): cannot be read: No such file or directory"),
    ],
    ids=range(9),
)
def test_a_folder_that_is_no_whole_export_is_refused_before_the_hub_is_asked(
    spoil: object, said: str, hub: HubStandIn, folder: Path, clock: Clock
) -> None:
    assert callable(spoil)
    spoil(folder)
    assert said in refusal(folder, clock)
    assert hub.requests == []


def test_an_error_without_a_text_is_named(folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "ModelCard", lambda text: (_ for _ in ()).throw(ValueError()))
    assert "cannot be read: ValueError" in refusal(folder, clock)


# ---- the command, and what `ochat check` asks ----


def test_the_command(hub: HubStandIn, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), "--repo", REPO, "--message", "hello", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verified"] is True
    assert hub.repo(REPO)["commits"][-1] == {"id": document["commit"], "title": "hello"}
    assert main(["push", str(folder), "--repo", REPO]) == 0
    out = capsys.readouterr().out
    assert f"{hub.url}/{REPO}" in out
    assert document["commit"] in out
    assert main(["push", str(folder), "--repo", "bob/model"]) == exits.USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ochat push: bob/model: ")
    assert captured.err.count("\n") == 1


def test_what_ochat_check_says(hub: HubStandIn, make_recipe: RecipeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def findings(**changes: object) -> list[tuple[str, str]]:
        facts = facts_of(make_recipe(**changes))
        return [(found.level, found.finding) for found in run_checks([("push", lambda: check_push(facts))])]

    assert findings() == []
    assert hub.requests == []
    assert findings(train__push_to_hub=REPO) == [("ok", f"train.push_to_hub: this login may write to {REPO}")]
    [(level, text)] = findings(train__push_to_hub="bob/model")
    assert level == "problem"
    assert text.startswith("bob/model: ")
    assert {request.split()[0] for request in hub.requests} == {"GET"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert findings(train__push_to_hub=REPO)[0][0] == "problem"


@pytest.mark.parametrize("name", ["a/b", "Org-1/Model_7b.v0", "a/" + "b" * 96])
def test_names_of_repositories(name: str) -> None:
    assert hub_name_problem(name) is None


@pytest.mark.parametrize(
    "name", ["a", "a/b/c", "/b", "a/", "a/b c", "a/-b", "a/b--c", "a/b..c", "a/b.git", "../b", "a/" + "b" * 97, "a/b\n"]
)
def test_what_is_no_name_of_a_repository(name: str) -> None:
    assert hub_name_problem(name) is not None
