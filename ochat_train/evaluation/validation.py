"""When a run looks at its held-out conversations, and what it says of them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.prepared.dataset import Manifest
from ochat_train.distributed.ranks import Ranks
from ochat_train.evaluation.evaluate import Evaluation, evaluate, held_out_data
from ochat_train.evaluation.samples import Sampler
from ochat_train.evaluation.schedule import default_interval
from ochat_train.recipe.sections import Recipe


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """line: the row of validation.jsonl (`seconds`: with the samples). samples: the rows of samples.jsonl.

    loss: None where it is not finite.
    """

    line: dict[str, Any] | None
    samples: list[dict[str, Any]]
    loss: float | None


class Validator:
    """Validates a run, or never where the recipe holds nothing out and asks nothing.

    When does not depend on the number of ranks: a run that goes on with another number validates after the same steps.
    """

    def __init__(self, recipe: Recipe, manifest: Manifest, *, num_steps: int) -> None:
        prepared_dir, settings = Path(recipe.data.prepared_dir), recipe.validation
        pack_length = recipe.train.pack_length_tokens
        has_held_out = manifest.splits["validation"].conversations > 0
        self._data = held_out_data(prepared_dir, manifest, pack_length=pack_length) if has_held_out else None
        self._sampler = Sampler(
            prepared_dir,
            manifest,
            self._data,
            prompts=settings.prompts,
            max_new_tokens=settings.sample_tokens,
            pack_length=pack_length,
            compiled=bool(recipe.model.compile),
        )
        self._seed, self._num_steps = recipe.seed, num_steps
        self.every_steps = settings.every_steps or default_interval(
            held_out_tokens=self.held_out_tokens,
            sample_tokens=self._sampler.num_tokens,
            tokens_per_step=recipe.train.tokens_per_step,
            num_steps=num_steps,
        )

    @property
    def is_on(self) -> bool:
        """Whether there is anything to look at."""
        return self._data is not None or bool(self._sampler.prompts)

    @property
    def held_out_tokens(self) -> int:
        """Tokens of held-out conversations that one validation reads, padding included."""
        return self._data.num_tokens if self._data else 0

    def is_due(self, step: int, *, saves: bool) -> bool:
        """Whether to validate after step `step` (from 1); saves: a checkpoint follows, which is to know its loss."""
        saves = saves and self._data is not None
        return self.is_on and (step % self.every_steps == 0 or step == self._num_steps or saves)

    def run(self, engine: Any, ranks: Ranks, step: int) -> ValidationResult:
        """Validate; all ranks call it and get the same."""
        start = time.monotonic()
        line, loss = None, None
        if self._data is not None:
            found = evaluate(engine, self._data, ranks, seed=self._seed)
            loss = found.loss if math.isfinite(found.loss) else None
            line = {"step": step, **validation_line(found)}
        samples = [{"step": step, **row} for row in self._sampler.answers(engine, ranks)]
        if line is not None:
            line["seconds"] = round(time.monotonic() - start, 3)
        return ValidationResult(line=line, samples=samples, loss=loss)


def validation_line(found: Evaluation) -> dict[str, Any]:
    """An evaluation as a JSON document; numbers that are not finite become null."""
    document: dict[str, Any] = _finite({"loss": found.loss, "classes": found.classes, **found.matrix.as_json()})
    return document


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
