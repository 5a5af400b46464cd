"""Runs lm-evaluation-harness on an export: `python -c` of this text, by a Python that need not have this project.

With a chat template, the harness's log-likelihood tasks put a choice right after the prompt, `Assistant:B`, where the
templates that begin every message with a space were trained on `Assistant: B`. So what the template itself puts between
a prompt and an answer, if that is white space, is put before a choice. The harness also counts white space at the end
of a prompt as part of the choice, which changes what is divided by its length. So a choice is what follows the ids of
the whole prompt, as in training, unless the tokenizer joins the two. A control token that is spelled out in a choice
stays text, as the template of an export keeps it in a message (by U+FDD0).
"""

import functools
from typing import Any


def main() -> None:
    """Run the harness with the arguments of its command line."""
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.models.huggingface import HFLM

    plain = HFLM._encode_pair

    def encode_pair(model: Any, context: str, continuation: str) -> Any:
        _, end, between = ends(model)
        if not (end and context.endswith(end) and continuation):
            return plain(model, context, continuation)
        text = as_message(model, continuation)
        choice = text if text.startswith(between) else between + text
        prompt, whole = model.tok_encode(context), model.tok_encode(context + choice)
        if whole[: len(prompt)] != prompt:
            return plain(model, context, choice)
        return prompt, whole[len(prompt) :]

    HFLM._encode_pair = encode_pair
    cli_evaluate()


@functools.cache
def ends(model: Any) -> tuple[str, str, str]:
    """Text of the template before and after a question, and what is between a prompt and its answer if white space."""
    turn = [{"role": "user", "content": "question"}]
    prompt = model.apply_chat_template(turn)
    answered = [*turn, {"role": "assistant", "content": "answer"}]
    whole = model.apply_chat_template(answered, add_generation_prompt=False)
    between = whole[len(prompt) : -len("answer")] if whole.startswith(prompt) else ""
    begin, _, end = prompt.rpartition("question")
    return begin, end, between if between.isspace() else ""


@functools.cache
def as_message(model: Any, text: str) -> str:
    """A text as the template writes it in a message, where only U+FDD0 is put into it."""
    begin, end, _ = ends(model)
    shown: str = model.apply_chat_template([{"role": "user", "content": text}])
    shown = shown[len(begin) : len(shown) - len(end)]
    return shown if shown.replace("\ufdd0", "") == text else text


if __name__ == "__main__":
    main()
