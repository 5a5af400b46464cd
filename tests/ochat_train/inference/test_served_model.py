"""What a folder says of itself: what is damaged is named, and not left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.errors import UserError
from ochat_train.export.layout import EXPORT_MARK
from ochat_train.inference.served_model import GENERATION_CONFIG, export_folder, stop_ids_of

TOKENIZER = SimpleNamespace(eos_token_id=7)


def test_a_damaged_mark_is_refused_and_none_is_not(tmp_path: Path) -> None:
    """Without it a model would be served without its conditions, and an adapter on any base."""
    (tmp_path / "config.json").touch()
    export_folder(tmp_path)  # a folder of another program
    mark = tmp_path / EXPORT_MARK
    mark.write_text('{"classes": []}')
    export_folder(tmp_path)
    for text in ("", '{"classes": [', "[]", "\x00\x00"):
        mark.write_text(text)
        with pytest.raises(UserError, match=EXPORT_MARK):
            export_folder(tmp_path)
    mark.unlink()
    mark.symlink_to("nowhere")
    with pytest.raises(UserError, match=EXPORT_MARK):
        export_folder(tmp_path)


def test_a_run_stands_for_its_export(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match=r"an export of it is needed; make one with `ochat export \S+ --out"):
        export_folder(tmp_path)
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match="export: not an exported model"):
        export_folder(tmp_path)
    (tmp_path / "export/config.json").touch()
    assert export_folder(tmp_path) == tmp_path / "export"
    (tmp_path / "config.json").touch()
    assert export_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("{}", (7,)),
        ('{"eos_token_id": null}', (7,)),
        ('{"eos_token_id": 3}', (7, 3)),
        ('{"eos_token_id": [3, 7, 4]}', (7, 3, 4)),
        ('{"eos_token_id": "3"}', None),
        ('{"eos_token_id": [3, true]}', None),
        ('{"eos_token_id": [3.0]}', None),
        ('{"eos_token_id": [null]}', None),
        ('{"eos_token_id": ', None),
    ],
)
def test_what_ends_an_answer_is_read_or_refused(tmp_path: Path, text: str, ids: tuple[int, ...] | None) -> None:
    (tmp_path / GENERATION_CONFIG).write_text(text)
    if ids is not None:
        assert stop_ids_of(tmp_path, TOKENIZER) == ids
        return
    with pytest.raises(UserError, match=GENERATION_CONFIG):
        stop_ids_of(tmp_path, TOKENIZER)
