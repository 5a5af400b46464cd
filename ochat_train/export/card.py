"""README.md of an export: what the model is, how it is prompted, what it was trained on, what came out.

Names and conditions come from data. The text has them as JSON strings in code spans, without the characters that could
end one (`json_code`); in the metadata the YAML writer quotes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.hub_names import hub_name_problem
from data_pipeline.look.tables import CLASS_HEAD, CLASS_NOTE, class_rows, ledger_counts, ledger_reasons, ledger_totals
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER
from data_pipeline.prompt.chat_folder import render_stored_template
from ochat_train.evaluation.results import Validation
from ochat_train.export.adapted import Differences
from ochat_train.export.adapter_text import adapter_text, rounding_text
from ochat_train.export.provenance import BaseModel
from ochat_train.recipe.sections.adapter import AdapterSettings
from ochat_train.report.tables import VERDICT_NOTE, evaluation_table, markdown_table, number_text, subset_notes
from ochat_train.runs.folder import RunFolder
from ochat_train.runs.metrics import StepMetrics

_FIX_CARD = "correct the metadata of the base's README.md"
_PAPER = "https://arxiv.org/abs/2309.11235"
_TAGS = ["ochat-train", "c-rlft", "conversational"]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is made from.

    step: of the exported checkpoint. recipe: its values as ochat.json has them, without paths. metrics, validation: the
    last ones up to that step; None where there is none. adapter: what was trained, None for all weights. is_merged: the
    export holds a whole model. has_token_rows: the export is an adapter with rows of embedding and head.
    """

    run: RunFolder
    base: BaseModel
    step: int
    recipe: Mapping[str, Any]
    metrics: StepMetrics | None
    validation: Validation | None
    versions: Mapping[str, str]
    adapter: AdapterSettings | None = None
    is_merged: bool = True
    has_token_rows: bool = False
    differences: Differences | None = None


def model_card(facts: CardFacts) -> str:
    """The text of README.md. Its metadata is read back with huggingface_hub, to see that it stays the same."""
    from huggingface_hub import ModelCard

    metadata = _metadata(facts)
    parts = [
        f"# {facts.run.recipe.name}",  # letters, digits, `.`, `_`, `-` by its rule
        _introduction(facts),
        _prompting(facts),
        _classes(facts),
        _results(facts),
        _data(facts),
        _settings(facts),
        _versions(facts),
    ]
    text = f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    if ModelCard(text).data.to_dict() != metadata.to_dict():
        raise UserError("README.md", "its metadata, from the base's card, reads back as something else", _FIX_CARD)
    return text


class _HasStep(Protocol):
    @property
    def step(self) -> int: ...


LoggedT = TypeVar("LoggedT", bound=_HasStep)


def last_until(step: int, logged: Sequence[LoggedT]) -> LoggedT | None:
    """The last logged step or validation up to `step`; they are in order."""
    return next((row for row in reversed(logged) if row.step <= step), None)


def json_code(text: str, *, in_table: bool = True) -> str:
    """A text as a JSON string in a code span. Whatever it holds, it stays one line, one table cell and inside its
    span.
    """
    unsafe = "|`" if in_table else "`"
    characters = json.dumps(text, ensure_ascii=False)
    safe = "".join(c if c.isprintable() and c not in unsafe else _json_escape(c) for c in characters)
    return f"`{safe}`"


def python_literal(text: str) -> str:
    """A text as a Python string literal: one line, no backquote, only printable characters."""
    characters = json.dumps(text, ensure_ascii=False)  # its escapes are also Python's; those of _json_escape are not
    return "".join(c if c.isprintable() and c != "`" else _python_escape(c) for c in characters)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _python_escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def _metadata(facts: CardFacts) -> Any:
    from huggingface_hub import ModelCardData

    base = facts.base
    relation = {"base_model_relation": "finetune" if facts.is_merged else "adapter"} if base.hub_id else {}
    tags = _TAGS if facts.adapter is None else [*_TAGS, "lora"]
    return ModelCardData(
        base_model=base.hub_id,
        license=base.license or "other",
        license_name=base.license_name,
        license_link=base.license_link,
        library_name="transformers" if facts.is_merged else "peft",
        pipeline_tag="text-generation",
        tags=tags,
        **relation,
    )


def _introduction(facts: CardFacts) -> str:
    base = facts.base
    if base.name is None:
        origin = "Trained from random weights"
    else:
        is_link = base.hub_id is not None and hub_name_problem(base.hub_id) is None
        link = f"[{base.hub_id}](https://huggingface.co/{base.hub_id})"
        origin = f"Fine-tuned from {link if is_link else json_code(base.name)}"
        origin += f" (revision {json_code(base.revision)})" if base.revision else ""
    text = (
        f"{origin} with C-RLFT ([conditioned reinforcement-learning fine-tuning]({_PAPER})): conversations of "
        "different quality belong to classes; each class has a condition, which joins the prompt, and a loss weight."
    )
    if facts.adapter is not None:
        text += f"\n\n{adapter_text(facts.adapter, is_merged=facts.is_merged, has_token_rows=facts.has_token_rows)}"
        if facts.differences is not None and facts.differences.rounding is not None:
            text += f" {rounding_text(facts.differences)}"
    if base.license is None:
        text += (
            f"\n\n> **Licence: unknown**, because {base.why_unknown}. The metadata therefore says `license: other`. "
            "Look the licence up and set it before you publish the model."
        )
    elif base.license == "other" and (base.license_name or base.license_link):
        shown = ", ".join(json_code(part) for part in (base.license_name, base.license_link) if part)
        text += f"\n\nThe base model has its own licence ({shown}), which also applies to this model."
    return text


def _prompting(facts: CardFacts) -> str:
    prepared = facts.run.prepared
    default = prepared.inference_condition
    others = dict.fromkeys(row.condition for row in prepared.classes if row.condition != default)
    alternatives = ", ".join(map(python_literal, others))
    comment = f"  # or {alternatives}" if others else ""
    template = facts.run.path / TOKENIZER_FOLDER / "chat_template.jinja"
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    prompts = []
    for condition in (default, *others):
        prompt = render_stored_template(template, question, condition=condition, add_generation_prompt=True)
        prompts.append(f"- {json_code(condition)}: {json_code(prompt, in_table=False)}")
    prompt_list = "\n".join(prompts)
    return f"""## How to prompt it

The chat template takes the condition of the class whose answers you want.
Without `condition` it uses {json_code(default)}.

```python
{_code(condition=python_literal(default) + comment, is_merged=facts.is_merged)}
```

The prompts that this makes:

{prompt_list}"""


def _code(*, condition: str, is_merged: bool) -> str:
    """How the model is loaded and asked. condition: a Python literal, perhaps with a comment."""
    package, name = ("transformers", "AutoModelForCausalLM") if is_merged else ("peft", "AutoPeftModelForCausalLM")
    imports = [f"from {package} import {name}", "from transformers import AutoTokenizer"]
    if is_merged:
        imports = [f"from {package} import {name}, AutoTokenizer"]
    end = "" if is_merged else ", eos_token_id=tokenizer.eos_token_id"
    lines = [
        *imports,
        "",
        'name = "..."  # this repository, or its folder',
        f"condition = {condition}",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f'model = {name}.from_pretrained(name, dtype="auto")',
        'messages = [{"role": "user", "content": "Why is the sky blue?"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, condition=condition, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        f"output = model.generate(**inputs, max_new_tokens=256{end})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(lines)


def _classes(facts: CardFacts) -> str:
    rows = class_rows(facts.run.prepared.classes, name=json_code, condition=json_code)
    return f"## Classes\n\n{markdown_table(CLASS_HEAD, rows)}\n\n{CLASS_NOTE}"


def _results(facts: CardFacts) -> str:
    parts = ["## Results", f"This is the model after step {facts.step:,}."]
    if (metrics := facts.metrics) is not None:
        loss, accuracy = number_text(metrics.means.loss, ".4f"), number_text(metrics.means.accuracy, ".1%")
        parts[-1] += (
            f" Training loss (weighted mean, nats per token) at step {metrics.step:,}: {loss}; next-token accuracy "
            f"{accuracy}."
        )
    if (validation := facts.validation) is None:
        parts.append("No conversations were held out, so nothing was validated.")
        return "\n\n".join(parts)
    loss = number_text(validation.evaluation.loss, ".4f")
    parts.append(
        f"Held-out conversations at step {validation.step:,}: loss {loss}. The columns `under` give the nll of a "
        "class's answers (nats per token) when prompted under that condition. `learnt` says whether they are likelier "
        f"under the class's own condition: {VERDICT_NOTE}"
    )
    head, rows = evaluation_table(validation.evaluation, shown=json_code)
    parts.append(markdown_table(head, rows))
    parts += subset_notes(validation.evaluation, shown=json_code)
    return "\n\n".join(parts)


def _data(facts: CardFacts) -> str:
    prepared = facts.run.prepared
    sources = [f"{json_code(source['path'])} ({source['format']})" for source in facts.recipe["data"]["sources"]]
    read, kept, _ = ledger_totals(prepared.ledger)
    counts = [("read", read), ("kept", kept)]
    for row in ledger_reasons(prepared.ledger):
        if row.is_dropped:
            counts.append((f"dropped: {json_code(row.reason)}", row.num_conversations))
    counts += ledger_counts(prepared.ledger)
    counts += [(f"in {json_code(name)}", split.conversations) for name, split in prepared.splits.items()]
    rows = [(what, f"{count:,}") for what, count in counts]
    table = markdown_table(("conversations", "number"), rows)
    return f"## Training data\n\nSources: {', '.join(sources)}.\n\n{table}"


def _settings(facts: CardFacts) -> str:
    # plain values of fixed keys: names, numbers and lists of numbers, which hold nothing to escape
    rows = []
    for section, key in _SHOWN_SETTINGS:
        value = json.dumps(facts.recipe[section][key])
        rows.append((f"`{section}.{key}`", f"`{value}`"))
    for key, value in (facts.recipe.get("adapter") or {}).items():
        rows.append((f"`adapter.{key}`", f"`{json.dumps(value)}`"))
    table = markdown_table(("key", "value"), rows)
    return f"## Settings\n\n{table}\n\n`ochat.json` has the recipe, without folders and trackers."


_SHOWN_SETTINGS = (
    ("model", "template"),
    ("model", "max_length_tokens"),
    ("data", "beta"),
    ("data", "condition_dropout"),
    ("train", "epochs"),
    ("train", "max_steps"),
    ("train", "tokens_per_step"),
    ("train", "pack_length_tokens"),
    ("train", "loss_denominator"),
    ("optimizer", "learning_rate"),
    ("optimizer", "warmup_ratio"),
    ("optimizer", "min_lr_ratio"),
    ("optimizer", "weight_decay"),
    ("optimizer", "betas"),
    ("optimizer", "grad_clip"),
)


def _versions(facts: CardFacts) -> str:
    return f"## Versions\n\n{markdown_table(('library', 'version'), sorted(facts.versions.items()))}"
