"""A stand-in of the Hugging Face Hub: an HTTP server with the endpoints that huggingface_hub uses to push a model.

    python -m tests.support.hub_stand_in PORT FOLDER
    export HF_ENDPOINT=http://127.0.0.1:PORT HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_alice     # for the client

Repositories are files in FOLDER; nothing is kept in memory but the faults. Xet, the Hub's own upload protocol, is
not there: clients must be told HF_HUB_DISABLE_XET=1 and then use LFS, in one part or (above `part_bytes`) in several.

    FOLDER/objects/SHA256                     contents of large files
    FOLDER/models/ORG/NAME/repo.json          {"private", "branches": {name: commit}, "commits": [...]}
    FOLDER/models/ORG/NAME/tree-COMMIT.json   path -> {"sha256"} or {"blob"}
    FOLDER/models/ORG/NAME/blobs/GIT_ID       contents of small files
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from data_pipeline.files import sha256_of_file

_BLOCK = 1 << 16

# token -> what whoami says; the names of tokens are those of Hugging Face's form, so that a leak of one can be looked
# for
ACCOUNTS: dict[str, dict[str, Any]] = {
    "hf_alice": {
        "name": "alice",
        "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}],
        "auth": {"accessToken": {"role": "write"}},
    },
    "hf_reader": {"name": "alice", "orgs": [], "auth": {"accessToken": {"role": "read"}}},
    "hf_mallory": {"name": "mallory", "orgs": [], "auth": {"accessToken": {"role": "write"}}},
    "hf_narrow": {
        "name": "alice",
        "orgs": [],
        "auth": {
            "accessToken": {
                "role": "fineGrained",
                "fineGrained": {
                    "scoped": [{"entity": {"type": "user", "name": "alice"}, "permissions": ["repo.content.read"]}]
                },
            }
        },
    },
    "hf_exact": {
        "name": "alice",
        "orgs": [],
        "auth": {
            "accessToken": {
                "role": "fineGrained",
                "fineGrained": {
                    "scoped": [
                        {
                            "entity": {"type": "user", "name": "alice"},
                            "permissions": ["repo.content.read", "repo.write"],
                        }
                    ]
                },
            }
        },
    },
}


@dataclass(kw_only=True)
class Fault:
    """What becomes of the next `times` requests whose method and path match `request` (`PUT /objects/*`).

    status: this answer, with `headers`. cut_after: the connection ends after so many bytes of the request's body.
    hold_after: after so many bytes of the body `reached` is set, and the connection ends when `go_on` is set.
    lose_answer: the request is carried out, and the connection ends before the answer.
    """

    request: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hold_after: int | None = None
    lose_answer: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


class HubStandIn(ThreadingHTTPServer):
    """The server. url: for HF_ENDPOINT. requests: `METHOD path` of all so far. uploaded: bytes of large files
    received.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, *, port: int = 0, part_bytes: int = 1 << 40, verbose: bool = False) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.part_bytes, self.verbose = folder, part_bytes, verbose
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[str] = []
        self.uploaded = 0
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        (folder / "objects").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def serving(self) -> Iterator[HubStandIn]:
        """Serve in a thread until the block ends."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for fault in self.faults:
                fault.go_on.set()
            self.shutdown()
            self.server_close()
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are part of the tests."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def add(self, fault: Fault) -> Fault:
        """Arm a fault; the first one that matches is taken."""
        self.faults.append(fault)
        return fault

    def fault_for(self, request: str) -> Fault | None:
        """The fault that a request meets, counted."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fnmatch.fnmatchcase(request, fault.request):
                    fault.times -= 1
                    return fault
        return None

    # ---- repositories ----

    def repo_folder(self, repo: str, kind: str = "models") -> Path:
        """The folder of a repository."""
        return self.folder / kind / repo

    def make_repo(self, repo: str, *, private: bool, kind: str = "models") -> None:
        """An empty repository, with the .gitattributes that the Hub puts there."""
        folder = self.repo_folder(repo, kind)
        (folder / "blobs").mkdir(parents=True)
        _write(folder / "repo.json", {"private": private, "branches": {}, "commits": []})
        tree = {".gitattributes": self._store_blob(folder, b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}
        self._add_commit(folder, "main", tree, "initial commit")

    def put(self, repo: str, files: dict[str, bytes]) -> None:
        """Add small files to a repository, as somebody else would."""
        folder = self.repo_folder(repo)
        tree = self.tree(repo, "main") | {name: self._store_blob(folder, content) for name, content in files.items()}
        self._add_commit(folder, "main", tree, "by somebody else")

    def repo(self, repo: str, kind: str = "models") -> dict[str, Any]:
        """The content of repo.json."""
        content: dict[str, Any] = json.loads((self.repo_folder(repo, kind) / "repo.json").read_text())
        return content

    def tree(self, repo: str, revision: str) -> dict[str, dict[str, str]]:
        """Files of a commit or branch. Raises KeyError where there is no such revision."""
        content = self.repo(repo)
        commit = content["branches"].get(revision) or {c["id"]: c["id"] for c in content["commits"]}[revision]
        tree: dict[str, dict[str, str]] = json.loads((self.repo_folder(repo) / f"tree-{commit}.json").read_text())
        return tree

    def read(self, repo: str, name: str, revision: str = "main") -> bytes:
        """The content of a file."""
        entry = self.tree(repo, revision)[name]
        if "sha256" in entry:
            return (self.folder / "objects" / entry["sha256"]).read_bytes()
        return (self.repo_folder(repo) / "blobs" / entry["blob"]).read_bytes()

    def _store_blob(self, folder: Path, content: bytes) -> dict[str, str]:
        blob = git_id(content)
        (folder / "blobs" / blob).write_bytes(content)
        return {"blob": blob}

    def _add_commit(self, folder: Path, branch: str, tree: dict[str, Any], title: str) -> str:
        content = json.loads((folder / "repo.json").read_text())
        commit = hashlib.sha1(json.dumps([len(content["commits"]), tree, title], sort_keys=True).encode()).hexdigest()
        _write(folder / f"tree-{commit}.json", tree)
        content["commits"].append({"id": commit, "title": title})
        content["branches"][branch] = commit
        _write(folder / "repo.json", content)
        return commit

    def commit(self, repo: str, branch: str, lines: list[dict[str, Any]]) -> str:
        """Carry out the operations of a commit request. Raises _HttpError."""
        folder, head = self.repo_folder(repo), self.repo(repo)["branches"].get(branch)
        if head is None:
            raise _HttpError(404, "RevisionNotFound", f"no branch {branch}")
        tree, title = self.tree(repo, branch), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", head) != head:
                    raise _HttpError(412, "", "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                tree[value["path"]] = self._store_blob(folder, base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if not (self.folder / "objects" / value["oid"]).is_file():
                    raise _HttpError(400, "", f"LFS object {value['oid']} was not uploaded")
                tree[value["path"]] = {"sha256": value["oid"]}
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        return self._add_commit(folder, branch, tree, title)

    def card_data(self, repo: str, revision: str) -> dict[str, Any] | None:
        """The metadata at the top of README.md."""
        if "README.md" not in self.tree(repo, revision):
            return None
        data: dict[str, Any] = yaml.safe_load(self.read(repo, "README.md", revision).decode().split("---\n")[1])
        return data

    def describe(self, repo: str, name: str, entry: dict[str, str]) -> dict[str, Any]:
        """An entry of the tree endpoint, computed from the bytes on disk."""
        if "blob" in entry:
            content = (self.repo_folder(repo) / "blobs" / entry["blob"]).read_bytes()
            return {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
        path = self.folder / "objects" / entry["sha256"]
        sha256, size = sha256_of_file(path), path.stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        lfs = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
        return {"type": "file", "path": name, "size": size, "oid": git_id(pointer), "lfs": lfs}


class _HttpError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"
    wbufsize = _BLOCK  # an answer in one packet: in two, each request would wait 40 ms for TCP
    fault: Fault | None

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, format: str, *values: Any) -> None:
        if self.server.verbose:
            super().log_message(format, *values)

    def _answer(self) -> None:
        url = urlsplit(self.path)
        request = f"{self.command} {unquote(url.path)}"
        with self.server.lock:
            self.server.requests.append(request)
        self.fault = self.server.fault_for(request)
        try:
            if self.fault is not None and self.fault.status is not None:
                self._body()
                raise _HttpError(self.fault.status, "", "a fault of the stand-in")
            status, content, headers = self._route(url.path, parse_qs(url.query))
            if self.fault is not None and self.fault.lose_answer:
                raise ConnectionResetError
        except _HttpError as error:
            more = self.fault.headers if self.fault is not None else {}
            codes = {"X-Error-Code": error.code} if error.code else {}
            status, content = error.status, json.dumps({"error": error.message}).encode()
            headers = {"X-Error-Message": error.message, **codes, **more}
        except ConnectionError:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # ---- the request's body, where most faults are ----

    def _blocks(self) -> Iterator[bytes]:
        left, seen = self._length(), 0
        for size in left:
            block = self.rfile.read(size)
            if len(block) < size:
                raise ConnectionResetError
            seen += len(block)
            yield block
            fault = self.fault
            if fault is not None and fault.cut_after is not None and seen >= fault.cut_after:
                raise ConnectionResetError
            if fault is not None and fault.hold_after is not None and seen >= fault.hold_after:
                fault.reached.set()
                fault.go_on.wait()
                raise ConnectionResetError

    def _length(self) -> Iterator[int]:
        """Sizes of the blocks to read: of a body with a length, or sent in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline() or b"0", 16):
                yield size
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", "0"))
        while left:
            yield min(left, _BLOCK)
            left -= min(left, _BLOCK)

    def _body(self) -> bytes:
        return b"".join(self._blocks())

    # ---- endpoints ----

    def _route(self, path: str, query: dict[str, list[str]]) -> tuple[int, bytes, dict[str, str]]:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "objects":  # as storage behind signed addresses: without a token
            return self._object(parts[1], query)
        account = ACCOUNTS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if account is None:
            self._body()
            raise _HttpError(401, "", "Invalid credentials in Authorization header")
        if parts[-3:] == ["lfs", "objects", "batch"]:
            repo = f"{parts[0]}/{parts[1].removesuffix('.git')}"
            self._check_writable(account, repo)
            return _json(self._batch())
        match parts:
            case ["api", "whoami-v2"]:
                return _json({"type": "user", **account})
            case ["api", "validate-yaml"]:
                self._body()
                return _json({"warnings": [], "errors": []})
            case ["api", "repos", "create"]:
                return self._create(account, json.loads(self._body()))
            case [organization, name, "resolve", revision, file]:
                return self._file(account, f"{organization}/{name}", revision, file)
            case ["api", kind, organization, name, *rest] if kind in ("models", "datasets", "spaces"):
                return self._repo_endpoint(account, kind, f"{organization}/{name}", rest)
        self._body()
        raise _HttpError(404, "", f"the stand-in has no {self.command} {path}")

    def _check_writable(self, account: dict[str, Any], repo: str) -> None:
        roles = {account["name"]: "write", **{org["name"]: org["roleInOrg"] for org in account["orgs"]}}
        token = account["auth"]["accessToken"]
        rights = {right for scope in token.get("fineGrained", {}).get("scoped", []) for right in scope["permissions"]}
        writes = token["role"] == "write" or "repo.write" in rights
        if roles.get(repo.split("/")[0]) != "write" or not writes:
            self._body()
            raise _HttpError(403, "", f"You don't have the rights to write to {repo}")

    def _create(self, account: dict[str, Any], wanted: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        repo = f"{wanted.get('organization') or account['name']}/{wanted['name']}"
        self._check_writable(account, repo)
        url = f"{self.server.url}/{repo}"
        if self.server.repo_folder(repo).is_dir():
            _, content, headers = _json({"error": "You already created this model repo", "url": url})
            return 409, content, headers
        self.server.make_repo(repo, private=wanted.get("visibility") == "private")
        return _json({"url": url, "name": repo})

    def _repo_endpoint(
        self, account: dict[str, Any], kind: str, repo: str, rest: list[str]
    ) -> tuple[int, bytes, dict[str, str]]:
        body = self._body()
        server = self.server
        names = {account["name"], *(org["name"] for org in account["orgs"])}
        if not server.repo_folder(repo, kind).is_dir() or (
            server.repo(repo, kind)["private"] and repo.split("/")[0] not in names
        ):
            raise _HttpError(404, "RepoNotFound", "Repository not found")
        if self.command == "POST" or rest == ["auth-check", "write"]:
            self._check_writable(account, repo)
        if rest == ["auth-check", "write"]:
            return _json({})
        content = server.repo(repo, kind)
        revision = rest[1] if len(rest) > 1 else "main"
        commit = content["branches"].get(revision) or next(
            (c["id"] for c in content["commits"] if c["id"] == revision), None
        )
        if rest[:1] == ["branch"]:
            if commit is not None:
                raise _HttpError(409, "", "Reference already exists")
            content["branches"][revision] = content["branches"]["main"]
            _write(server.repo_folder(repo) / "repo.json", content)
            return _json({})
        if commit is None:
            raise _HttpError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not rest or rest[0] == "revision":
            info = {"id": repo, "modelId": repo, "sha": commit, "private": content["private"], "siblings": []}
            return _json({**info, "cardData": server.card_data(repo, commit) if kind == "models" else None})
        tree = server.tree(repo, commit)
        if rest[0] == "tree":
            return _json([server.describe(repo, name, entry) for name, entry in sorted(tree.items())])
        if rest[0] == "preupload":
            files = json.loads(body)["files"]
            return _json({"files": [self._upload_mode(repo, tree, file) for file in files]})
        if rest[0] == "commit":
            with server.lock:
                commit = server.commit(repo, revision, [json.loads(line) for line in body.splitlines()])
            return _json(
                {"commitUrl": f"{server.url}/{repo}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None}
            )
        raise _HttpError(404, "", f"the stand-in has no {rest[0]}")

    def _file(self, account: dict[str, Any], repo: str, revision: str, file: str) -> tuple[int, bytes, dict[str, str]]:
        self._repo_endpoint(account, "models", repo, ["revision", revision])  # whether it may be read
        if file not in self.server.tree(repo, revision):
            raise _HttpError(404, "EntryNotFound", "Entry not found")
        entry = self.server.tree(repo, revision)[file]
        commit = self.server.repo(repo)["branches"].get(revision, revision)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.get("blob") or entry["sha256"]}"'}
        return 200, self.server.read(repo, file, revision), {"Content-Type": "text/plain", **headers}

    def _upload_mode(self, repo: str, tree: dict[str, dict[str, str]], file: dict[str, Any]) -> dict[str, Any]:
        is_large = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
        entry = self.server.describe(repo, file["path"], tree[file["path"]]) if file["path"] in tree else None
        oid = entry["lfs"]["oid"] if entry and "lfs" in entry else entry["oid"] if entry else None
        return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def _batch(self) -> dict[str, Any]:
        objects = []
        for wanted in json.loads(self._body())["objects"]:
            sha256, size = wanted["oid"], wanted["size"]
            stored = self.server.folder / "objects" / sha256
            entry: dict[str, Any] = {"oid": sha256, "size": size}
            url = f"{self.server.url}/objects/{sha256}"
            if not stored.is_file():
                part = self.server.part_bytes
                numbers = range(1, -(-size // part) + 1)
                parts = {f"{number:05d}": f"{url}?part={number}" for number in numbers} if size > part else {}
                header = {"chunk_size": str(part), **parts} if parts else {}
                entry["actions"] = {"upload": {"href": f"{url}?complete=1" if parts else url, "header": header}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _object(self, sha256: str, query: dict[str, list[str]]) -> tuple[int, bytes, dict[str, str]]:
        """A PUT of a large file or of a part of one, or the request that joins its parts."""
        folder = self.server.folder / "objects"
        if "complete" in query:
            joined = folder / f".{sha256}.joined"
            with joined.open("wb") as file:
                for part in json.loads(self._body())["parts"]:
                    file.write((folder / f".{sha256}.{part['partNumber']}").read_bytes())
            self._finish(joined, sha256)
            return _json({})
        number = query.get("part", ["whole"])[0]
        received = folder / f".{sha256}.{number}"
        with received.open("wb") as file:
            for block in self._blocks():
                with self.server.lock:
                    self.server.uploaded += len(block)
                file.write(block)
        if number == "whole":
            self._finish(received, sha256)
        return 200, b"", {"ETag": f'"{number}"'}

    def _finish(self, received: Path, sha256: str) -> None:
        if sha256_of_file(received) != sha256:
            raise _HttpError(400, "", "the uploaded bytes have another sha256")
        os.replace(received, self.server.folder / "objects" / sha256)


def git_id(content: bytes) -> str:
    """What git calls a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _write(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def _json(content: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(content).encode(), {}


if __name__ == "__main__":
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    server = HubStandIn(folder, port=port, verbose=True)
    print(
        f"HF_ENDPOINT={server.url} HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_alice   (users: {', '.join(ACCOUNTS)})", flush=True
    )
    server.serve_forever()
