"""A server that behaves like vLLM's: the same flags, routes, key, events and exit codes, and no model.

Run as `python -m vllm.entrypoints.openai.api_server` of the folder that `write_vllm` makes, or as a script.
STAND_IN_ANSWERS names a JSON file with the answers of a model, [ids of a prompt, ids of its answer]; after any other
prompt the next token follows from the last one by a rule.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

VERSION = "0.26.0"
TOKEN_SECONDS = 0.004
LONG_TOKEN_SECONDS = 0.1  # of answers that may have more than 100 tokens: a test finds them running


def write_vllm(folder: Path) -> Path:
    """An environment with vLLM: a Python in whose site this file is the server. The path of that Python."""
    package = folder / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for parent in (package, package.parent, package.parent.parent):
        (parent / "__init__.py").write_text("")
    code = f"import runpy\nrunpy.run_path({str(Path(__file__).resolve())!r}, run_name='__main__')\n"
    (package / "api_server.py").write_text(code)
    dist = folder / "site" / f"vllm-{VERSION}.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    (dist / "top_level.txt").write_text("vllm\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """vLLM's flags; an unknown one ends the program with code 2, as there."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--served-model-name", default="model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--uds")
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--generation-config", default="auto")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, default=16)
    parser.add_argument("--lora-modules", nargs="+", default=[])
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    # what other servers and faults are like
    parser.add_argument("--without-ids", action="store_true", help="send text only, as llama.cpp does")
    parser.add_argument("--with-bos", action="store_true", help="put a token before ids, as no server should")
    parser.add_argument("--fail-with", help="print this and end with code 1")
    parser.add_argument("--break-after", type=int, help="close the connection after so many tokens")
    parser.add_argument("--break-with", type=int, help="the code of an error event, instead of a broken connection")
    parser.add_argument("--refuse-with", type=int, help="answer streams with this status")
    return parser.parse_args(arguments)


class StandIn:
    """The model and what happened so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        import tokenizers

        self.options, self.key = options, os.environ.get("VLLM_API_KEY")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(options.model / "tokenizer.json"))
        self.counts = {"asked": 0, "running": 0, "finished": 0, "aborted": 0}
        self.bodies: list[dict[str, Any]] = []
        # a process of the engine, as vLLM has one for each GPU
        self.worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        answers = os.environ.get("STAND_IN_ANSWERS")
        self.answers = [(a, b) for a, b in json.loads(Path(answers).read_text())] if answers else []

    def next_token(self, ids: Sequence[int]) -> tuple[int, list[tuple[int, float]]]:
        """The token after ids, and the likeliest ones with their log-probabilities."""
        for prompt, answer in self.answers:
            number = len(ids) - len(prompt)
            if list(ids) == [*prompt, *answer[:number]] and number < len(answer):
                return answer[number], [(answer[number], -0.25), (ids[0], -1.5)]
        return 60 + (ids[-1] * 7 + len(ids)) % 200, [(ids[-1], -0.5), (ids[0], -1.5)]

    def models(self) -> list[str]:
        return [self.options.served_model_name, *(text.partition("=")[0] for text in self.options.lora_modules)]


def make_app(options: argparse.Namespace) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    stand_in = StandIn(options)

    def refused(request: Request) -> Response | None:
        if stand_in.key and request.headers.get("authorization") != f"Bearer {stand_in.key}":
            return JSONResponse({"error": "Unauthorized"}, status_code=401)
        return None

    async def health(request: Request) -> Response:
        return Response()

    async def models(request: Request) -> Response:
        rows = [{"id": name, "max_model_len": options.max_model_len} for name in stand_in.models()]
        return refused(request) or JSONResponse({"object": "list", "data": rows})

    async def facts(request: Request) -> Response:
        found = {"pid": os.getpid(), "worker": stand_in.worker.pid, "arguments": sys.argv[1:], "cwd": os.getcwd()}
        return JSONResponse({**found, **stand_in.counts, "bodies": stand_in.bodies, "has_key": bool(stand_in.key)})

    async def completions(request: Request) -> Response:
        if (response := refused(request)) is not None:
            return response
        body = json.loads(await request.body())
        stand_in.bodies.append(body)
        stand_in.counts["asked"] += 1
        if body.get("model") not in stand_in.models():
            message = f"The model `{body.get('model')}` does not exist."
            return JSONResponse({"error": {"message": message, "type": "NotFoundError"}}, status_code=404)
        prompt = body["prompt"]
        ids = stand_in.tokenizer.encode(prompt, add_special_tokens=False).ids if isinstance(prompt, str) else prompt
        ids = [0, *ids] if options.with_bos else ids
        if len(ids) + body["max_tokens"] > options.max_model_len:
            return JSONResponse({"error": {"message": "too long"}}, status_code=400)
        if body["stream"] and options.refuse_with:
            return JSONResponse({"error": {"message": "not now"}}, status_code=options.refuse_with)
        if not body["stream"]:
            token, _ = stand_in.next_token(ids)
            choice: dict[str, Any] = {"index": 0, "text": stand_in.tokenizer.decode([token]), "finish_reason": "length"}
            if body.get("return_token_ids") and not options.without_ids:
                choice["token_ids"] = [token]
            usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
            return JSONResponse({"choices": [choice], "usage": usage})
        return StreamingResponse(events(stand_in, ids, body), media_type="text/event-stream")

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/facts", facts),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
    return Starlette(routes=routes)


async def events(stand_in: StandIn, prompt: Sequence[int], body: dict[str, Any]) -> AsyncIterator[str]:
    options, ids, given = stand_in.options, list(prompt), ""
    stand_in.counts["running"] += 1
    ended = False
    try:
        for number in range(1, body["max_tokens"] + 1):
            if number - 1 == options.break_after:
                if not options.break_with:
                    raise ConnectionError("planted")
                error = {"message": "planted in a stream", "type": "InternalServerError", "code": options.break_with}
                yield f"data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n"
                return
            await asyncio.sleep(TOKEN_SECONDS if body["max_tokens"] <= 100 else LONG_TOKEN_SECONDS)
            token, likeliest = stand_in.next_token(ids)
            ids.append(token)
            stops = token in body["stop_token_ids"]
            finish = "stop" if stops else "length" if number == body["max_tokens"] else None
            answer = ids[len(prompt) : -1] if stops else ids[len(prompt) :]
            whole = stand_in.tokenizer.decode(answer)
            text = whole[len(given) :] if finish or not whole.endswith("\ufffd") else ""
            given += text
            choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": finish}
            if body.get("return_token_ids") and not options.without_ids:
                choice["token_ids"] = [token]
            if body.get("logprobs") is not None:
                top = dict(likeliest[: max(1, body["logprobs"])])
                name = (lambda one: f"token_id:{one}") if body.get("return_tokens_as_token_ids") else str
                choice["logprobs"] = {
                    "tokens": [name(token)],
                    "token_logprobs": [dict(likeliest).get(token, -3.0)],
                    "top_logprobs": [{name(one): value for one, value in top.items()}],
                }
            event = {"choices": [choice], "usage": {"prompt_tokens": len(prompt), "completion_tokens": number}}
            ended = finish is not None
            yield f"data: {json.dumps(event)}\n\n"
            if ended:
                break
        yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': number}})}\n\ndata: [DONE]\n\n"
    finally:
        stand_in.counts["running"] -= 1
        stand_in.counts["finished" if ended else "aborted"] += 1


def main() -> None:
    options = parsed(sys.argv[1:])
    if options.fail_with:
        sys.exit(f"Traceback of a server:\n{options.fail_with}")
    import uvicorn

    where = {"uds": options.uds} if options.uds else {"host": options.host or "127.0.0.1", "port": options.port or 8000}
    uvicorn.run(make_app(options), log_level="warning", **where)


if __name__ == "__main__":
    main()
