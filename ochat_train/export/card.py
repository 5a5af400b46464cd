"""README.md of an export: what the model is, how it is prompted, what it was trained on, what came out.

Names and conditions come from data. In the text they stand as JSON strings in code spans, without the characters that
could end one (`json_code`); in the metadata YAML's own writer quotes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.prepared.dataset import TOKENIZER_FOLDER
from data_pipeline.prompt.chat_folder import render_chat_template
from ochat_train.export.base_model import BaseModel
from ochat_train.report.tables import number_text, validation_table
from ochat_train.runs.folder import RunFolder

_PAPER = "https://arxiv.org/abs/2309.11235"
_TAGS = ["ochat-train", "c-rlft", "conversational"]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is made from.

    step: of the exported checkpoint. recipe: its values as ochat.json has them, without paths. metrics, validation: the
    last rows of metrics.jsonl and validation.jsonl up to that step; None where there is none.
    """

    run: RunFolder
    base: BaseModel
    step: int
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    validation: Mapping[str, Any] | None
    versions: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """The text of README.md, with metadata that huggingface_hub reads back as it was meant."""
    from huggingface_hub import ModelCard

    metadata = _metadata(facts.base)
    parts = [
        f"# {facts.run.recipe.name}",
        _introduction(facts),
        _prompting(facts),
        _classes(facts),
        _results(facts),
        _data(facts),
        _settings(facts),
        _versions(facts),
    ]
    text = f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    assert ModelCard(text).data.to_dict() == metadata.to_dict(), "the metadata reads back as something else"
    return text


def last_row(rows: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any] | None:
    """The last row up to a step; rows are in order."""
    return next((row for row in reversed(rows) if row["step"] <= step), None)


def json_code(text: str, *, in_table: bool = True) -> str:
    """A text as a JSON string in a code span. Whatever it holds, it stays one line, one table cell and inside its
    span.
    """
    unsafe = "|`" if in_table else "`"
    characters = json.dumps(text, ensure_ascii=False)
    return f"`{''.join(c if c.isprintable() and c not in unsafe else _json_escape(c) for c in characters)}`"


def python_literal(text: str) -> str:
    """A text as a string of Python's, in one line, without a backquote and without what cannot be printed."""
    characters = json.dumps(text, ensure_ascii=False)  # its escapes are Python's, too; those of _json_escape are not
    return "".join(c if c.isprintable() and c != "`" else _python_escape(c) for c in characters)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def _python_escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metadata(base: BaseModel) -> Any:
    from huggingface_hub import ModelCardData

    relation = {"base_model_relation": "finetune"} if base.hub_id else {}
    return ModelCardData(
        base_model=base.hub_id,
        license=base.license or "other",
        license_name=base.license_name,
        license_link=base.license_link,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_TAGS,
        **relation,
    )


def _introduction(facts: CardFacts) -> str:
    base = facts.base
    if base.name is None:
        origin = "Trained from random weights"
    else:
        link = f"[{base.hub_id}](https://huggingface.co/{base.hub_id})"
        origin = f"Fine-tuned from {link if base.hub_id else json_code(base.name)}"
        origin += f" (revision {json_code(base.revision)})" if base.revision else ""
    text = (
        f"{origin} with C-RLFT ([conditioned reinforcement-learning fine-tuning]({_PAPER})): conversations of "
        "different quality belong to classes; each class has a condition, which joins the prompt, and a loss weight."
    )
    if base.license is None:
        text += (
            f"\n\n> **Licence: not known.** It could not be found out: {base.why_unknown}. `license: other` in the "
            "metadata stands for that. Look it up and set it before you pass the model on."
        )
    elif base.license == "other" and (base.license_name or base.license_link):
        shown = ", ".join(json_code(part) for part in (base.license_name, base.license_link) if part)
        text += f"\n\nThe base model has a licence of its own ({shown}), which holds for this model, too."
    return text


def _prompting(facts: CardFacts) -> str:
    prepared = facts.run.prepared
    default = prepared.inference_condition
    others = dict.fromkeys(row.condition for row in prepared.classes if row.condition != default)
    comment = f"  # or {', '.join(python_literal(condition) for condition in others)}" if others else ""
    template = (facts.run.path / TOKENIZER_FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    prompts = []
    for condition in (default, *others):
        prompt = render_chat_template(template, question, condition=condition, add_generation_prompt=True)
        prompts.append(f"- {json_code(condition)}: {json_code(prompt, in_table=False)}")
    return f"""## How to prompt it

The chat template takes the condition of the class whose answers you want.
Without `condition` it uses {json_code(default)}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "..."  # this repository, or its folder
condition = {python_literal(default)}{comment}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
inputs = tokenizer.apply_chat_template(
    messages, condition=condition, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

The prompts that this makes:

{chr(10).join(prompts)}"""


def _classes(facts: CardFacts) -> str:
    rows = [
        (
            json_code(row.name),
            json_code(row.condition),
            "in the rows" if row.weight is None else f"{row.weight:.6g}",
            f"{row.conversations:,}",
            f"{row.tokens:,}",
            f"{row.supervised_tokens:,}",
            f"{row.weight_share:.1%}",
        )
        for row in facts.run.prepared.classes
    ]
    head = ("class", "condition", "weight", "conversations", "tokens", "supervised tokens", "share of the weight")
    return f"## Classes\n\n{_table(head, rows)}"


def _results(facts: CardFacts) -> str:
    parts = ["## Results"]
    if (row := facts.metrics) is not None:
        loss, accuracy = number_text(row["loss"], ".4f"), number_text(row["accuracy"], ".1%")
        parts.append(
            f"This is the model after step {facts.step:,}. Training loss (weighted mean, nats per token) at step "
            f"{row['step']:,}: {loss}; next-token accuracy {accuracy}."
        )
    else:
        parts.append(f"This is the model after step {facts.step:,}.")
    if (line := facts.validation) is None:
        parts.append("No conversations were held out, so nothing was validated.")
        return "\n\n".join(parts)
    head, rows = validation_table(line, shown=json_code)
    parts.append(
        f"Held-out conversations at step {line['step']:,}: loss {number_text(line['loss'], '.4f')}. The columns "
        "`under` give the nll of a class's answers (nats per token) when prompted under that condition."
    )
    parts.append(_table(head, rows))
    return "\n\n".join(parts)


def _data(facts: CardFacts) -> str:
    ledger, prepared = facts.run.prepared.ledger, facts.run.prepared
    sources = ", ".join(
        f"{json_code(source['path'])} ({source['format']})" for source in facts.recipe["data"]["sources"]
    )
    rows = [("read", f"{ledger.read:,}"), ("kept", f"{ledger.kept:,}")]
    rows += [(f"dropped: {json_code(reason)}", f"{count:,}") for reason, count in ledger.dropped.items()]
    rows += [
        ("cut to the longest length", f"{ledger.truncated:,}"),
        ("without the part after the last trained token", f"{ledger.tail_trimmed:,}"),
        ("prompted without their condition", f"{ledger.condition_left_out:,}"),
        *((f"in `{name}`", f"{counts.conversations:,}") for name, counts in prepared.splits.items()),
    ]
    return f"## Training data\n\nSources: {sources}.\n\n{_table(('conversations', 'number'), rows)}"


def _settings(facts: CardFacts) -> str:
    # plain values of fixed keys: names, numbers and lists of numbers, which hold nothing to escape
    rows = [(f"`{section}.{key}`", f"`{json.dumps(facts.recipe[section][key])}`") for section, key in _SHOWN_SETTINGS]
    table = _table(("key", "value"), rows)
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
    return f"## Versions\n\n{_table(('library', 'version'), sorted(facts.versions.items()))}"
