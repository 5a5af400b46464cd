"""The flags of `ochat init`, and the mistakes in them that can be found without reading the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.formats.table import TEXT_FORMATS
from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.recipe.recipe import NAME_PATTERN


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags, named as in `ochat init --help`; None or empty if not given."""

    files: Sequence[str]
    base: str | None
    out: Path | None
    name: str | None
    template: str | None
    classes: Sequence[str]
    class_of: Sequence[str]
    class_field: Sequence[str]
    format: Sequence[str]
    max_length: int | None
    epochs: int | None
    gpus: int | None
    bad_rows: str | None
    adapter: str | None
    sample_rows: int | None
    overwrite: bool


def check_options(options: Options) -> None:
    """Raise UserError for mistakes that can be found without reading the files."""
    if options.out is not None:
        check_out(options.out, overwrite=options.overwrite)
    if options.name is not None and not NAME_PATTERN.fullmatch(options.name):
        raise UserError(
            f"--name {options.name}", "use 1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
        )
    if options.template is not None and options.template not in TEMPLATES:
        raise UserError(f"--template {options.template}", "unknown template", f"templates: {', '.join(TEMPLATES)}")
    twice = next((path for path in options.files if options.files.count(path) > 1), None)
    if twice is not None:
        raise UserError(twice, "is named twice", "name each file once")


def check_out(out: Path, *, overwrite: bool) -> Path:
    """The path of the recipe to write. Raises UserError for one that cannot be a recipe, or may not be replaced."""
    place = f"--out {out}"
    if out.is_dir():
        raise UserError(place, "is a folder", f"name a file, for example {out / 'mine.yaml'}")
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(place, "a recipe's name ends in .yaml", "for example recipes/mine.yaml")
    if out.exists() and not overwrite:
        raise UserError(place, "exists already", "choose another name, or pass --overwrite")
    return out


def file_formats(options: Options) -> dict[str, str]:
    """The formats that `--format` gives, by file. Raises UserError for an unknown one."""
    formats = values_by_file(options.format, flag="--format", paths=options.files)
    for path, name in formats.items():
        if name not in TEXT_FORMATS:
            raise UserError(f"--format {path}={name}", "unknown format", f"formats: {', '.join(TEXT_FORMATS)}")
    return formats


def values_by_file(texts: Sequence[str], *, flag: str, paths: Sequence[str]) -> dict[str, str]:
    """`FILE=VALUE` flags by file. Raises UserError for a text of another form and for a file that was not named."""
    result = {}
    for text in texts:
        path, separator, value = text.rpartition("=")
        if not separator or not path or not value:
            raise UserError(f"{flag} {text}", f"expected FILE={flag.removeprefix('--').upper()}")
        if path not in paths:
            raise UserError(f"{flag} {text}", f"{path} is not one of the files: {', '.join(paths)}")
        result[path] = value
    return result
