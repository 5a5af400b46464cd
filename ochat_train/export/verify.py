"""Whether an export is the trained model: its weights, its logits, and the ids of its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.prepared.dataset import TOKENIZER_FOLDER
from data_pipeline.prompt.chat_folder import render_stored_template
from data_pipeline.text_rules import quoted, some_names
from ochat_train.model.base_class import load_exported
from ochat_train.model.borders import device_to_run_on
from ochat_train.runs.folder import RunFolder
from ochat_train.system.pretrained import load_tokenizer, prompt_ids

_OTHER_VERSIONS = "nothing was exported; export with the versions of `transformers` and `tokenizers` that trained it"
_MESSAGES = [{"role": "user", "content": " Hello,\n world! 1,000 é🙂 "}]


def prompts(run: RunFolder) -> dict[str, list[int]]:
    """Ids of one prompt under every condition of a run, from its own tokenizer and template."""
    tokenizer = load_tokenizer(run.path / TOKENIZER_FOLDER).backend_tokenizer
    template = run.path / TOKENIZER_FOLDER / "chat_template.jinja"
    found = {}
    for condition in dict.fromkeys(row.condition for row in run.prepared.classes):
        text = render_stored_template(template, _MESSAGES, condition=condition, add_generation_prompt=True)
        found[condition] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


@torch.no_grad()
def logits_of(run: RunFolder, causal_lm: Any) -> list[torch.Tensor]:
    """Logits of `prompts`, in their order, on the CPU, where the model is before and afterwards."""
    device = device_to_run_on(causal_lm, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cpu":
        causal_lm.to(device)
    found = [causal_lm(torch.tensor([ids], device=device)).logits.cpu() for ids in prompts(run).values()]
    if device.type != "cpu":
        causal_lm.cpu()
    return found


def verify_tokenizer(run: RunFolder, folder: Path) -> None:
    """Raise UserError unless the chat template of an export gives the ids of training."""
    tokenizer = load_tokenizer(folder)
    for condition, expected in prompts(run).items():
        if prompt_ids(tokenizer, _MESSAGES, condition=condition, add_generation_prompt=True) != expected:
            problem = f"the tokenizer gives other ids after loading (condition {quoted(condition)})"
            raise UserError(folder, problem, _OTHER_VERSIONS)


def verify_model(run: RunFolder, trained: Any, folder: Path) -> None:
    """Raise UserError unless the model of an export has every weight and every logit of the trained one."""
    loaded = load_exported(folder)
    expected, found = trained.state_dict(), loaded.state_dict()
    wrong = [name for name in expected.keys() | found.keys() if not _same(expected.get(name), found.get(name))]
    if wrong:
        problem = f"weights changed on the way to disk: {some_names(sorted(wrong), most=5)}"
        raise UserError(folder, problem, "nothing was exported; check the disk, and export again")
    other = _other_logits(run, trained, loaded)
    if other is not None:
        for model in (trained, loaded):
            _align(model)
        other = _other_logits(run, trained, loaded)
    if other is not None:
        raise UserError(folder, f"the loaded model gives other logits (condition {quoted(other)})", _OTHER_VERSIONS)


def _other_logits(run: RunFolder, trained: Any, loaded: Any) -> str | None:
    """The first condition under which two models differ in one bit of their logits; None where there is none."""
    pairs = zip(prompts(run), logits_of(run, trained), logits_of(run, loaded), strict=True)
    return next((condition for condition, wanted, given in pairs if not torch.equal(wanted, given)), None)


_ALIGNMENT = 64  # bytes; where torch puts the tensors that it makes on a CPU


def _align(model: Any) -> None:
    """Move weights to where torch would have put them: those of a file that is mapped lie anywhere, and products on a
    CPU round otherwise there. Takes memory for what is moved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def _same(expected: torch.Tensor | None, found: torch.Tensor | None) -> bool:
    return expected is not None and found is not None and expected.dtype == found.dtype and torch.equal(expected, found)
