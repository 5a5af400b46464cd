"""Datasets of the Hub, and folders written by `datasets.save_to_disk`: what is read through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import RowError, UserError
from data_pipeline.read.columnar_rows import ColumnarRow
from data_pipeline.settings.sources import HUB_PREFIX, SourceSettings

_ROWS_AT_ONCE = 1000


def saved_folder(source: SourceSettings) -> Path | None:
    """The folder of `datasets.save_to_disk` that a source names, None if it names none."""
    if source.is_on_hub:
        return None
    folder = Path(source.path)
    inner = folder if source.subset is None else folder / source.subset
    return next((one for one in (inner, folder) if is_saved(one)), None)


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def load_dataset(source: SourceSettings, *, where: str) -> Any:
    """The dataset, giving plain Python values whatever format it was saved with. Raises UserError."""
    loaded = _from_hub(source, where=where) if source.is_on_hub else _from_disk(source, where=where)
    return loaded.with_format(None)


def _from_hub(source: SourceSettings, *, where: str) -> Any:
    import datasets

    if source.split is None:
        raise UserError(where, f"{source.path}: name the split, for example `split: train`")
    name = source.path.removeprefix(HUB_PREFIX)
    if name.count("/") > 1 or "@" in name:
        remedy = f"write `{HUB_PREFIX}ORG/NAME`, without `datasets/`, and give `revision` and `subset` as keys"
        raise UserError(where, f"{source.path}: is not the name of a dataset on the Hub", remedy)
    if Path(name).exists():
        problem = f"{source.path}: `{name}` is here as well, and `datasets` would read that instead"
        raise UserError(where, problem, f"run it in another folder, or name the files as `./{name}`")
    chosen = {"name": source.subset, "revision": source.revision}
    given = {key: value for key, value in chosen.items() if value is not None}
    try:
        return datasets.load_dataset(name, split=source.split, **given)
    except Exception as error:
        text = str(error)
        remedy = "name it as `subset` of the source" if "onfig name is missing" in text else ""
        raise UserError(where, f"{source.path}: cannot be loaded from the Hub: {text}", remedy) from None


def _from_disk(source: SourceSettings, *, where: str) -> Any:
    import datasets

    folder = saved_folder(source)
    assert folder is not None, "checked by is_dataset"
    if (folder / "manifest.json").is_file() and (folder / "tokenizer").is_dir():
        raise UserError(where, f"{folder}: was written by `ochat prepare`; its rows are tokens", "name its sources")
    if source.subset is not None and folder == Path(source.path):
        raise UserError(where, f"{folder}: has no subset `{source.subset}`", "remove `subset`")
    if "::" in str(folder):
        raise UserError(where, f"{folder}: `datasets` opens no folder with `::` in its name", "rename it")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever `datasets`, fsspec and Arrow say of damaged folders
        problem = f"{folder}: cannot be read ({type(error).__name__}: {error})"
        raise UserError(where, problem, "save the dataset again") from None
    if not isinstance(loaded, datasets.DatasetDict):
        if source.split not in (None, str(loaded.split)):
            raise UserError(where, f"{folder}: has no splits, so no split `{source.split}`", "remove `split`")
        return loaded
    if source.split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if source.split not in loaded:
        problem = "has several splits" if source.split is None else f"has no split `{source.split}`"
        raise UserError(where, f"{folder}: {problem}", f"name one as `split`: {', '.join(loaded)}")
    return loaded[source.split]


def dataset_rows(source: SourceSettings, *, where: str) -> Iterator[tuple[str, Any]]:
    """All rows with their places. A value that Python cannot hold is a RowError in its place."""
    dataset = load_dataset(source, where=where)
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, len(dataset))
        for number, row in enumerate(_block(dataset, start, end), start + 1):
            yield f"{source.path}:row {number}", row


def _block(dataset: Any, start: int, end: int) -> list[dict[str, Any]]:
    try:
        columns = dataset[start:end]
    except Exception:
        columns = {name: _column(dataset.select_columns([name]), name, start, end) for name in dataset.column_names}
    return [ColumnarRow(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _column(dataset: Any, name: str, start: int, end: int) -> list[Any]:
    try:
        return list(dataset[start:end][name])
    except Exception:
        return [_value(dataset, name, number) for number in range(start, end)]


def _value(dataset: Any, name: str, number: int) -> Any:
    try:
        return dataset[number][name]
    except Exception as error:
        return RowError("unreadable_value", f"a value of column `{name}` cannot be read ({error})")
