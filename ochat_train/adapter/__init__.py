"""LoRA adapters on a base model: where they are, what they train, and under which names PEFT knows it."""
