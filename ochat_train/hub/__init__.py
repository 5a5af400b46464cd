"""The Hugging Face Hub: rights, uploads that survive failures, pushes beside a run."""
