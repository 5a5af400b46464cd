"""A judge: any OpenAI-compatible chat server that rates answers. What it said is kept, and never asked twice."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.json_files import typed
from ochat_train.suites.ask import TEMPORARY_STATUSES, Patience
from ochat_train.suites.store import Lines, key_of
from ochat_train.suites.suite import Message, Unscored
from ochat_train.system.addresses import is_this_machine
from ochat_train.system.requirements import http_library

KEY_VARIABLE = "OCHAT_JUDGE_KEY"
JUDGEMENTS_FILE = "judgements.jsonl"
LOWEST, HIGHEST = 1.0, 10.0
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")
_MAX_TOKENS = 2048  # of a judgement
_TRIES_WITHOUT_RATING = 2


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who judges. url: of the server, its `/v1`, or its chat completions. model: the name that the server knows.

    key: of the server, None for none; never written anywhere. folder: where judgements are kept.
    """

    url: str
    model: str
    folder: Path
    key: str | None = None
    num_parallel: int = 8
    patience: Patience = field(default_factory=Patience)

    @property
    def endpoint(self) -> str:
        """The address that is asked."""
        url = self.url.rstrip("/")
        if url.endswith("/chat/completions"):
            return url
        return f"{url}/chat/completions" if url.endswith("/v1") else f"{url}/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a judge said of one answer. rating: 1 to 10. model, fingerprint: as the server names itself in its answer;
    empty where it does not.
    """

    text: str
    rating: float
    model: str
    fingerprint: str


def rating_of(text: str) -> float | None:
    """The rating of a judgement: the last `[[number]]` in it, None where there is none from 1 to 10.

    The last one, because a judge may quote an earlier one from the answer that it rates, which could rate itself so.
    """
    found = _RATING.findall(text)
    if not found or not LOWEST <= float(found[-1]) <= HIGHEST:
        return None
    return float(found[-1])


def judge_all(judge: Judge, prompts: Sequence[Sequence[Message]]) -> list[Judgement | Unscored]:
    """The judgement of each prompt, from the file of judgements where it has one.

    Raises UserError where the server refuses the key or the model, or a judgement cannot be written.
    """
    kept = Lines(judge.folder / JUDGEMENTS_FILE)
    keys = [key_of("judgement", judge.endpoint, judge.model, [dict(message) for message in p]) for p in prompts]
    with _client(judge) as client, ThreadPoolExecutor(judge.num_parallel) as pool:

        def one(key: str, prompt: Sequence[Message]) -> Judgement | Unscored:
            if (known := kept.get(key, lambda value: typed(Judgement, value))) is not None:
                return known
            found = _judgement(client, judge, prompt)
            if isinstance(found, Judgement):
                kept.put(key, asdict(found), judge=judge.model)
            return found

        return list(pool.map(one, keys, prompts))


def prompts_sha256(*texts: str) -> str:
    """The hash of a judge's instructions, so that results say with which they were made."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _client(judge: Judge) -> Any:
    headers = {} if judge.key is None else {"Authorization": f"Bearer {judge.key}"}
    timeout = judge.patience.timeout_seconds
    return http_library().Client(headers=headers, timeout=timeout, trust_env=not is_this_machine(judge.url))


def _judgement(client: Any, judge: Judge, prompt: Sequence[Message]) -> Judgement | Unscored:
    reason, unrated = "", 0
    for num_tries in range(1, judge.patience.num_tries + 1):
        found = _asked_once(client, judge, prompt)
        if isinstance(found, Judgement):
            return found
        reason = found.reason
        unrated += not found.is_temporary
        if unrated == _TRIES_WITHOUT_RATING or num_tries == judge.patience.num_tries:
            break
        time.sleep(judge.patience.wait_seconds(num_tries, found.wait_seconds) if found.is_temporary else 0.0)
    return Unscored(reason=f"the judge: {reason}")


@dataclass(frozen=True, kw_only=True)
class _Failed:
    """A try without a judgement. is_temporary: of the server; otherwise the judge answered, without a rating."""

    reason: str
    is_temporary: bool
    wait_seconds: float | None = None


def _asked_once(client: Any, judge: Judge, prompt: Sequence[Message]) -> Judgement | _Failed:
    import httpx

    body = {
        "model": judge.model,
        "messages": [dict(message) for message in prompt],
        "temperature": 0.0,
        "max_tokens": _MAX_TOKENS,
    }
    try:
        response = client.post(judge.endpoint, json=body)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        remedy = "name one like http://HOST:PORT/v1"
        raise UserError(f"--judge {judge.url}", f"is no address: {error}", remedy) from None
    except httpx.HTTPError as error:
        return _Failed(reason=f"no answer ({type(error).__name__})", is_temporary=True)
    if response.status_code in TEMPORARY_STATUSES:
        return _Failed(
            reason=f"status {response.status_code}",
            is_temporary=True,
            wait_seconds=_seconds(response.headers.get("retry-after")),
        )
    if response.status_code != 200:
        problem = f"answers with status {response.status_code}: {response.text[:200]}"
        raise UserError(f"--judge {judge.url}", problem, "see to its address, key and --judge-model")
    return _read(response)


def _read(response: Any) -> Judgement | _Failed:
    try:
        values = response.json()
        text = values["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return _Failed(reason="an answer that is not of the chat API", is_temporary=True)
    if not isinstance(text, str) or not text.strip():
        return _Failed(reason="an empty answer", is_temporary=True)
    rating = rating_of(text)
    if rating is None:
        return _Failed(reason=f"no rating in {text.strip()[-80:]!r}", is_temporary=False)
    names = [_text(values, key) for key in ("model", "system_fingerprint")]
    return Judgement(text=text, rating=rating, model=names[0], fingerprint=names[1])


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _seconds(text: str | None) -> float | None:
    """`Retry-After` in seconds; None where it is missing, or a date."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
