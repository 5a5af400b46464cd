"""OpenAI's API over an engine: what `ochat serve` answers."""
