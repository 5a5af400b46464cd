"""The tokenizer folder that a prepared dataset carries and an export gets, and the proof that it prompts as we
train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_pipeline.conversation import Conversation, Message, TaggedConversation
from data_pipeline.errors import RowError, UserError
from data_pipeline.files import write_text
from data_pipeline.json_files import read_text
from data_pipeline.prompt.base_template.check import check_base_template
from data_pipeline.prompt.base_template.sandbox import sandbox
from data_pipeline.prompt.base_template.template import BaseTemplate
from data_pipeline.prompt.base_template.wrapper import wrapped_templates
from data_pipeline.prompt.chat_template import CHAT_TEMPLATE, MASK_TEMPLATE, chat_template
from data_pipeline.prompt.library_errors import tokenizers_errors
from data_pipeline.prompt.prompt_format import AnyTemplate
from data_pipeline.prompt.render import render
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from data_pipeline.prompt.tokenization import TemplateTokenizer, TokenizerSpec

TEMPLATE_FILE = "template.json"  # of a format that is not one of ours


def write_tokenizer_folder(
    folder: Path, spec: TokenizerSpec, template: AnyTemplate, *, inference_condition: str, max_length_tokens: int
) -> None:
    """Write a folder that `transformers.AutoTokenizer` loads: the ids of training, and a chat template with
    `condition`. Beside it is the template that marks what is learned; nothing loads it unasked. A format of the user's
    own is there too, for `ochat inspect`.
    """
    folder.mkdir(parents=True)
    write_text(folder / "tokenizer.json", _with_whole_offsets(spec.backend))
    # The plain fast class uses tokenizer.json unchanged; transformers' LlamaTokenizer would rebuild it and lose the
    # `legacy` flag, which changes the ids of text that follows a control token.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": spec.bos_token,
        "eos_token": template.end_of_turn,
        "pad_token": spec.pad_token or spec.unk_token or template.end_of_turn,
        "unk_token": spec.unk_token,
        "model_max_length": max_length_tokens,
        "clean_up_tokenization_spaces": False,
    }
    write_text(
        folder / "tokenizer_config.json", json.dumps({k: v for k, v in config.items() if v is not None}, indent=1)
    )
    for file, text in _chat_templates(spec, template, inference_condition).items():
        write_text(folder / file, text)
    if isinstance(template, Template) and template.name not in TEMPLATES:
        write_text(folder / TEMPLATE_FILE, template.model_dump_json(indent=1, exclude_defaults=True))


def stored_template(folder: Path, name: str) -> Template | None:
    """The template of a tokenizer folder, by its name; None where that is a Jinja template."""
    if (folder / TEMPLATE_FILE).is_file():
        try:
            return Template.model_validate_json(read_text(folder / TEMPLATE_FILE))
        except ValueError:
            raise UserError(folder / TEMPLATE_FILE, "is damaged", "run `ochat prepare` again") from None
    return TEMPLATES.get(name)


def _chat_templates(spec: TokenizerSpec, template: AnyTemplate, inference_condition: str) -> Mapping[str, str]:
    """File name -> text."""
    if isinstance(template, BaseTemplate):
        return wrapped_templates(template, special_tokens=spec.special_tokens, inference_condition=inference_condition)
    return {
        file: chat_template(
            template,
            bos_token=spec.bos_token,
            special_tokens=spec.special_tokens,
            inference_condition=inference_condition,
            marks_answers=marks_answers,
        )
        for file, marks_answers in ((CHAT_TEMPLATE, False), (MASK_TEMPLATE, True))
    }


def _with_whole_offsets(backend: str) -> str:
    """The tokenizer with white space counted to the token that begins with it. No ids change.

    `transformers` looks for the token at the first character of an answer. Where it is a space and belongs to no token,
    it gives a mask without answers.
    """
    description = json.loads(backend)
    processor = description.get("post_processor") or {}
    parts = [part for part in (processor, *processor.get("processors", [])) if part.get("trim_offsets")]
    if not parts:
        return backend
    for part in parts:
        part["trim_offsets"] = False
    return Tokenizer.from_str(json.dumps(description)).to_str()


def render_chat_template(text: str, messages: Sequence[dict[str, str]], **variables: Any) -> str:
    """Render a chat template as `transformers` does."""
    return str(sandbox().from_string(text).render(messages=list(messages), **variables))


def render_stored_template(path: Path, messages: Sequence[dict[str, str]], **variables: Any) -> str:
    """Render the chat template of a folder. Raises UserError where it cannot be read, or fails."""
    text = read_text(path)
    try:
        return render_chat_template(text, messages, **variables)
    except Exception as error:  # a template is a program: whatever it does wrong
        raise UserError(path, f"the chat template fails: {type(error).__name__}: {error}", "restore it") from None


def check_chat_template(spec: TokenizerSpec, template: AnyTemplate) -> None:
    """Raise UserError unless the chat template's ids are those of training, on texts that are known to be difficult."""
    if isinstance(template, BaseTemplate):
        check_base_template(spec, template)
        return
    tokenizer = TemplateTokenizer(spec)
    whole = Tokenizer.from_str(spec.backend)
    text = chat_template(
        template, bos_token=spec.bos_token, special_tokens=spec.special_tokens, inference_condition="Probe"
    )
    for content in ("Hello", " a\n", "\n\n b ", "1,000", "é🙂", f"x{template.end_of_turn}y"):
        messages = (Message(role="user", content=content), Message(role="assistant", content=content))
        system = content if template.shows_system else ""
        conversation = Conversation(id="probe", place="probe", messages=messages, system=system)
        tagged = TaggedConversation(
            conversation=conversation, class_name="probe", condition="Probe", message_weights=(0.0, 1.0)
        )
        tokens = tokenizer.tokenize([render(tagged, template, bos_token=spec.bos_token)])[0]
        roles = [("system", content)] if system else []
        roles += [("user", content), ("assistant", content)]
        prompt = render_chat_template(text, [{"role": role, "content": value} for role, value in roles])
        with tokenizers_errors("model.tokenizer"):
            ids = whole.encode(prompt, add_special_tokens=False).ids
        if isinstance(tokens, RowError) or tokens.input_ids.tolist() != ids:
            raise UserError(
                "model.tokenizer",
                f"with template `{template.name}` this tokenizer gives other ids for a whole prompt than for its parts "
                f"(message {content!r}), so a trained model could not be prompted as it was trained",
                "use another template or tokenizer",
            )
