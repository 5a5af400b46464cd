"""The prompt format of a recipe, and the tokenizer made ready for it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.prompt.base_template.load import BaseTemplateSettings, load_base_prompts
from data_pipeline.prompt.base_template.template import BASE, is_jinja
from data_pipeline.prompt.chat_template import CHAT_TEMPLATE
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.templates import TEMPLATES, is_template_file
from data_pipeline.prompt.tokenization import TokenizerSpec
from data_pipeline.prompt.tokenizer_files import find_tokenizer_files
from data_pipeline.prompt.tokenizer_loading import load_tokenizer_spec
from ochat_train.recipe.sections.model import ModelSettings
from ochat_train.recipe.template_file import load_template


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """How conversations become tokens."""

    template: AnyTemplate
    tokenizer: TokenizerSpec


def load_prompts(model: ModelSettings) -> Prompts:
    """Find the tokenizer and the template. Raises UserError where one of them cannot be used."""
    if not is_jinja(model.template):
        files = find_tokenizer_files(model.tokenizer_source, revision=model.revision)
        is_file = is_template_file(model.template)
        template = load_template(Path(model.template)) if is_file else TEMPLATES[model.template]
        return Prompts(template=template, tokenizer=load_tokenizer_spec(files, template))
    wanted = (CHAT_TEMPLATE,) if model.template == BASE else ()
    files = find_tokenizer_files(model.tokenizer_source, revision=model.revision, more=wanted)
    settings = BaseTemplateSettings(
        path=None if model.template == BASE else Path(model.template),
        condition_in=model.condition_in or "system",
        rewritten_history=model.rewritten_history or "one_row_per_answer",
        variables=model.template_variables or {},
        date=None if model.template_date is None else datetime.date.fromisoformat(model.template_date),
    )
    base_template, tokenizer = load_base_prompts(files, settings)
    return Prompts(template=base_template, tokenizer=tokenizer)
