"""Addresses of servers that a person types: what they are read as, and that no key in one is shown."""

from __future__ import annotations

import pytest

from data_pipeline.errors import UserError
from ochat_train.cli.main import main
from ochat_train.system.addresses import server_address


def address_of(text: str) -> str:
    return server_address(text, option="--url", key_variable="THE_KEY", example="http://host:1")


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
@pytest.mark.parametrize("server", ["http://host:8000", "https://[::1]:1", "https://gate.example/team/v1/model"])
def test_every_form_of_an_address_is_the_same_one(server: str, end: str) -> None:
    assert address_of(server + end) == server


@pytest.mark.parametrize(
    "text",
    [
        *("http://me:secret@host", "http://secret@host", "http://:secret@host", "http://@host"),
        *("http://me:se/cret@host", "http:/me:secret@host", "me:secret@host", "http://me:se?cret@host"),
        *("http://host/v1?api_key=secret", "http://host#secret", "ftp://me:secret@host", "http://me:secret@host:99999"),
    ],
)
def test_an_address_with_a_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UserError, match="in THE_KEY") as caught:
        address_of(text)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "host", "ftp://host", "http://", "http://host:99999", "http://[::1", "http://a b"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not the address of a server; use a form such as http://host:1"):
        address_of(text)


def test_that_of_a_judge_is_checked_before_anything_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    judge = ["--judge", "http://me:secret@127.0.0.1:9", "--judge-model", "m"]
    assert main(["eval", "no-such-folder", "--suite", "mt-bench", *judge]) == 2
    said = capsys.readouterr().err
    assert "--judge: holds a key" in said
    assert "set its key in OCHAT_JUDGE_KEY" in said
    assert "secret" not in said
