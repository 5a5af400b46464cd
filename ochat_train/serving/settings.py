"""What `ochat serve` was told: limits, names and who may ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from ochat_train.serving.keys import Keys

MAX_CHOICES = 16  # `n` of a request
MAX_STOPS = 4  # as OpenAI's API
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may take from the others.

    max_body_bytes: of a request. max_messages: of a conversation. max_concurrent: answers that are computed at once.
    max_queue: requests that wait for their turn; more get a 429. request_seconds: until a request is answered
    completely, its time in the queue included. body_seconds: until the body of a request has arrived. header_seconds:
    until its headers have, or a connection without a request is closed. drain_seconds: how long answers may take after
    SIGTERM.
    """

    max_body_bytes: int = 2 * 2**20
    max_messages: int = 1000
    max_concurrent: int = 256
    max_queue: int = 256
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    drain_seconds: float = 30.0

    @property
    def max_requests(self) -> int:
        """Requests of any kind that are in work at once; bodies that are being read count."""
        return self.max_concurrent + self.max_queue + 64


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Everything but the engine and its models.

    keys: who may ask; empty for everybody. any_condition: whether conditions that were not trained are allowed.
    allowed_hosts: names that requests may be for (their Host header), None for any. allowed_origins: web pages of other
    servers that may read answers.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    any_condition: bool = False
    allowed_hosts: frozenset[str] | None = None
    allowed_origins: frozenset[str] = frozenset()
