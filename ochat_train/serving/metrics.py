"""What `GET /metrics` shows, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "ServerMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class ServerMetrics:
    """Counters of one server, in their own registry. Labels take few values: routes, trained conditions, models."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        by_model = ("model", "condition")
        self.requests = Counter("ochat_requests", "Requests that have ended.", ("route", "status"), registry=registry)
        self.answers = Counter(
            "ochat_answers", "Answers that have ended, by reason.", (*by_model, "finish"), registry=registry
        )
        self.prompt_tokens = Counter("ochat_prompt_tokens", "Tokens of prompts.", by_model, registry=registry)
        self.answer_tokens = Counter("ochat_answer_tokens", "Tokens of answers.", by_model, registry=registry)
        self.first_token_seconds = Histogram(
            "ochat_time_to_first_token_seconds",
            "From the arrival of a request to the first token of an answer, the queue included.",
            by_model,
            buckets=_SECONDS,
            registry=registry,
        )
        self.token_seconds = Histogram(
            "ochat_time_per_token_seconds",
            "Mean time of the tokens of an answer after the first.",
            by_model,
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when the metrics are read."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
