"""Loads exports with the transformers that is first on PYTHONPATH. Imports nothing of the project.

    python load.py QUESTIONS ANSWERS

QUESTIONS: {"folders": {name: folder}, "messages": [...], "condition": text, "text": text}.
ANSWERS: {"version": ..., name: {"ids", "text_ids", "logits", "problems", "tied", "eos_token_id"}}; logits of the
prompt that the messages make, as nested lists.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
questions = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
answers = {"version": transformers.__version__}
for name, folder in questions["folders"].items():
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        questions["messages"], condition=questions["condition"], add_generation_prompt=True, return_dict=False
    )
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", dtype="auto"
    )
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0]
    answers[name] = {
        "ids": ids,
        "text_ids": tokenizer(questions["text"])["input_ids"],
        "logits": logits.double().tolist(),
        "problems": [key for keys in info.values() for key in keys],
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "eos_token_id": model.generation_config.eos_token_id,
    }
Path(sys.argv[2]).write_text(json.dumps(answers), encoding="utf-8")
