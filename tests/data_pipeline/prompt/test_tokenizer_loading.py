"""Tokenizer files from strangers: what is damaged is named, and nothing of it becomes a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.prompt.chat_folder import check_chat_template, render_stored_template
from data_pipeline.prompt.library_errors import tokenizers_errors
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TokenizerSpec
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec

TEMPLATE = TEMPLATES["openchat_3.5"]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path, small_tokenizer_dir: Path) -> Path:
    return Path(shutil.copytree(small_tokenizer_dir, tmp_path / "tokenizer"))


def loaded(folder: Path) -> TokenizerSpec:
    return load_tokenizer_spec(find_tokenizer_files(str(folder)), TEMPLATE)


def change(folder: Path, changes: Change, file: str = "tokenizer.json") -> None:
    values = json.loads((folder / file).read_text(encoding="utf-8"))
    changes(values)
    (folder / file).write_text(json.dumps(values), encoding="utf-8")


def add_token(content: str) -> Change:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)

    def add(values: dict[str, Any]) -> None:
        number = max(values["model"]["vocab"].values()) + 1
        values["added_tokens"].append({"id": number, "content": content, "special": True, **flags})

    return add


def test_a_beginning_token_that_is_not_special_becomes_a_control_token(folder: Path) -> None:
    """As transformers makes it one: text that spells it stays text. Before, this was a KeyError."""
    good = loaded(folder)
    change(folder, lambda values: [token.update(special=False) for token in values["added_tokens"]])
    spec = loaded(folder)
    assert spec.bos_token == good.bos_token == "<s>"
    assert "<s>" in spec.special_tokens
    assert spec.vocab_size == good.vocab_size
    check_chat_template(spec, TEMPLATE)


DAMAGE: dict[str, tuple[Change, str]] = {
    "one character": (add_token("|"), "the control token '|' has fewer than two characters"),
    "id beyond any model": (lambda v: v["model"]["vocab"].update(x=4_000_000_000), "its largest id is 4,000,000,000"),
    "tokens are no list": (lambda v: v.update(added_tokens=7), "added_tokens holds 7"),
    "token without id": (lambda v: v["added_tokens"][0].pop("id"), "added_tokens holds {'content'"),
    "normalizer": (lambda v: v.update(normalizer="NFC"), "its normalizer is 'NFC'"),
    "normalizers": (lambda v: v.update(normalizer={"type": "Sequence", "normalizers": 3}), "its normalizer is "),
    "model": (lambda v: v.update(model={"type": "Nothing"}), "the tokenizers library fails: "),
    "an id beyond a gap": (
        lambda v: v["added_tokens"].append(
            {**v["added_tokens"][0], "content": "<x>", "id": len(v["model"]["vocab"]) + 9}
        ),
        "says that '<x>' has the id 317, and the `tokenizers` library gives it 308",
    ),
    "ids in another order": (
        lambda v: [add_token(f"<{n}>")(v) or v["added_tokens"][-1].update(id=309 - n) for n in range(2)],
        "says that '<0>' has the id 309, and the `tokenizers` library gives it 308",
    ),
    "merges": (lambda v: v["model"].update(merges=[["zz", "qq"]]), "the tokenizers library fails: "),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_a_tokenizer_is_named(name: str, folder: Path) -> None:
    changes, message = DAMAGE[name]
    change(folder, changes)
    with pytest.raises(UserError) as caught:
        loaded(folder)
    assert message in str(caught.value)
    assert caught.value.remedy


NAMES: dict[str, tuple[Any, str]] = {
    "list": ([], "bos_token: [] is not a token"),
    "object without text": ({}, "bos_token: {} is not a token"),
    "not in the vocabulary": ("<nowhere>", "bos_token '<nowhere>' is not in the vocabulary"),
}


@pytest.mark.parametrize("name", NAMES)
def test_damage_of_the_names_of_tokens_is_named(name: str, folder: Path) -> None:
    value, message = NAMES[name]
    change(folder, lambda values: values.update(bos_token=value), "tokenizer_config.json")
    with pytest.raises(UserError) as caught:
        loaded(folder)
    assert message in str(caught.value)


def test_a_padding_token_without_an_id_is_not_used(folder: Path) -> None:
    """transformers would give it an id of its own, for which no model has a row."""
    change(folder, lambda values: values.update(pad_token="[PAD]", unk_token="<s>"), "tokenizer_config.json")
    spec = loaded(folder)
    assert (spec.pad_token, spec.unk_token) == (None, "<s>")


BYTES = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "too deep": b"[" * 100_000,
    "a number of 5,000 digits": b'{"added_tokens": ' + b"9" * 5_000 + b"}",
}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("name", BYTES)
def test_files_that_are_not_json_objects_are_named(name: str, file: str, folder: Path) -> None:
    (folder / file).write_bytes(BYTES[name])
    with pytest.raises(UserError, match=f"{file}: is damaged"):
        loaded(folder)


def test_a_pointer_of_git_lfs_is_called_so(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"is a pointer of Git LFS and not the file: .*run `git lfs pull`"):
        loaded(folder)


def test_a_stored_template_that_fails_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    for text in ("{% if %}", "{{ 1 / 0 }}", "{{ messages.__class__.__mro__ }}", "{{ raise_exception('no') }}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="the chat template fails"):
            render_stored_template(path, [])
    with pytest.raises(UserError, match="cannot be read"):
        render_stored_template(tmp_path / "nowhere", [])


def test_only_errors_of_the_library_are_turned_into_the_users() -> None:
    """A panic of the library is one; Ctrl-C is not."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(UserError, match="the tokenizers library fails: index out"), tokenizers_errors("model"):
        raise panic("index out of bounds\nmore")
    with pytest.raises(KeyboardInterrupt), tokenizers_errors("model"):
        raise KeyboardInterrupt
