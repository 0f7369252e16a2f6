"""A small Hub over loopback: as much of its HTTP API as unmodified `huggingface_hub` and `transformers` use.

    with HubServer(tmp_path) as server:
        api = HfApi(endpoint=server.url, token="hf_...")       # in this process
        env = {**os.environ, "HF_ENDPOINT": server.url}        # in another one

It offers the basic LFS transfer and no Xet, so the client must run with `HF_HUB_DISABLE_XET=1`. Every request is
recorded (`server.requests`); faults are scripted (`server.fail`).
"""

import contextlib
import itertools
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_server_state import HubState, Refused, Repo, lfs_pointer

WRITER = "hf_WriterTokenOfTheTestsHubXXXXXXXXXX"
READER = "hf_ReaderTokenOfTheTestsHubXXXXXXXXXX"
STRANGER = "hf_StrangerTokenOfTheTestsHubXXXXXXXX"
LARGE = (".safetensors", ".onnx", ".pt", ".bin")


@dataclass
class Request:
    """One request as it arrived; `sent` counts the bytes of its body that were read."""

    method: str
    path: str
    sent: int
    user: str | None


@dataclass
class Fault:
    """What becomes of the next `times` requests whose "METHOD /path" the pattern `match` is found in."""

    match: str
    status: int | None = None  # answer this, and do nothing else
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)  # of that answer
    html: bool = False  # a web page as the body of that answer
    cut_after: int | None = None  # read so many bytes of the body, then reset the connection
    lose_answer: bool = False  # do what was asked, then reset the connection
    kill: bool = False  # kill the server before the request has any effect
    before: Callable[[], None] | None = None  # call this, then handle the request as usual


class _Cut(Exception):
    """The connection ends here, without an answer."""


class HubServer:
    """The server; a context manager. `WRITER` and `READER` are tokens of "user", `STRANGER` of "stranger".

    Args:
        folder: State on disk; a second server on the same folder continues with it.
    """

    def __init__(self, folder: Path) -> None:
        self.state = HubState(folder / "hub", {WRITER: "user", STRANGER: "stranger"}, {READER: "user"})
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self.port = 0  # the first start takes a free one, later starts the same again
        self.http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        """Stops listening and cuts every open connection, as the death of the process would."""
        with self.lock:
            http, self.http = self.http, None
            connections = list(self.connections)
        if http is not None:
            http.shutdown()
            http.server_close()
        for connection in connections:
            _reset(connection)

    def fail(self, match: str, **options: Any) -> None:
        """Scripts a `Fault`."""
        self.faults.append(Fault(match, **options))

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return None

    def count(self, match: str) -> int:
        """How many recorded requests match."""
        return sum(re.search(match, f"{request.method} {request.path}") is not None for request in self.requests)

    def uploaded_bytes(self) -> int:
        """Bytes of file content received so far, as large files or within commits."""
        pattern = r"PUT /lfs/|POST .*/commit/"
        return sum(r.sent for r in self.requests if re.search(pattern, f"{r.method} {r.path}"))


def _reset(connection: socket.socket) -> None:
    """Ends a connection with RST in place of FIN: the other side sees a cut, not an orderly end."""
    with contextlib.suppress(OSError):  # it may be gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Silent: tests look at `server.requests`."""

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET

    def handle_request(self) -> None:
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        self.parts = [unquote(part) for part in split.path.strip("/").split("/")]
        self.record = Request(self.command, split.path, 0, None)
        with self.hub.lock:
            self.hub.requests.append(self.record)
        fault = self.hub.fault(f"{self.command} {split.path}")
        try:
            if fault is not None and fault.kill:
                self.hub.kill()
                raise _Cut
            self.body = self.read_body(None if fault is None else fault.cut_after)
            if fault is not None and fault.cut_after is not None:
                raise _Cut
            if fault is not None and fault.status is not None:
                if fault.html:
                    self.answer(fault.status, b"<html>please log in</html>", {"Content-Type": "text/html"})
                else:
                    self.answer_error(Refused(fault.status, "scripted fault"), fault.headers)
                return
            if fault is not None and fault.before is not None:
                fault.before()
            with self.hub.lock:
                try:
                    self.record.user, self.may_write = self.hub.state.user(self.headers.get("Authorization"))
                    answer = self.route()
                except Refused as refused:
                    self.answer_error(refused, {})
                    return
            if fault is not None and fault.lose_answer:
                raise _Cut
            self.answer(*answer)
        except (_Cut, OSError):
            _reset(self.connection)
            self.close_connection = True

    def read_body(self, limit: int | None) -> bytes:
        if limit == 0:
            return b""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
                self.record.sent += size
                if limit is not None and self.record.sent >= limit:
                    break
            else:
                self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length if limit is None else min(limit, length))
        self.record.sent = len(body)
        return body

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_error(self, refused: Refused, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": refused.message, **headers}
        if refused.code is not None:
            headers["X-Error-Code"] = refused.code
        # The Hub repeats no token, but proxies do: a client must not pass on what it reads here unseen.
        body = {"error": f"{refused.message} (your header: {self.headers.get('Authorization')})"}
        self.answer(refused.status, json.dumps(body).encode(), headers)

    def json(self, value: Any) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}

    def route(self) -> tuple[Any, ...]:
        """Status, body and headers of the answer."""
        parts, user = self.parts, self.record.user
        if parts[0] == "lfs":
            return self.lfs_object()
        if parts[0] == "api" and parts[1:2] in (["models"], ["spaces"]) and len(parts) >= 4:
            prefix = "spaces/" if parts[1] == "spaces" else ""
            return self.repo_api(prefix + "/".join(parts[2:4]), parts[4:])
        if parts[0] == "api":
            payload = json.loads(self.body) if self.body else {}
            if parts[1:] == ["validate-yaml"]:
                return self.validate_yaml(payload["content"])
            if parts[1:] == ["repos", "create"]:
                is_space = payload.get("type") == "space"
                if is_space and not payload.get("sdk"):
                    raise Refused(400, "A Space needs an sdk")
                repo_id = f"{'spaces/' if is_space else ''}{payload.get('organization') or user}/{payload['name']}"
                self.hub.state.check_write(repo_id, user, self.may_write)
                self.hub.state.create(repo_id, payload.get("visibility") == "private")
                return self.json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})
        if len(parts) > 2 and parts[1].endswith(".git"):
            return self.lfs_batch(f"{parts[0]}/{parts[1].removesuffix('.git')}")
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve(self.hub.state.repo("/".join(parts[:2]), user), parts[3], "/".join(parts[4:]))
        raise Refused(404, f"no such route here: {self.command} {self.path}")

    def validate_yaml(self, content: str) -> tuple[Any, ...]:
        match = re.match(r"---\r?\n(.*?)\r?\n---", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match.group(1)) if match else {}
            errors = [] if isinstance(metadata, dict) else [{"message": "metadata should be an object"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        status, body, headers = self.json({"errors": errors, "warnings": []})
        return 400 if errors else status, body, headers

    def repo_api(self, repo_id: str, rest: list[str]) -> tuple[Any, ...]:
        state, user = self.hub.state, self.record.user
        verb, revision = (rest + ["", ""])[:2]
        repo = state.repo(repo_id, user)
        if verb in ("commit", "branch", "tag", "preupload"):
            if self.query.get("create_pr") != "1":  # a pull request is open to everyone with a token
                state.check_write(repo_id, user, self.may_write)
            return self.change(repo_id, repo, verb, revision)
        if verb in ("", "revision"):
            commit = repo.resolve(revision or "main")
            siblings = [{"rfilename": path} for path in repo.files(commit)]
            info = {"id": repo_id, "modelId": repo_id, "sha": commit, "private": repo.private, "tags": []}
            return self.json({**info, "gated": False, "disabled": False, "siblings": siblings})
        if verb == "refs":
            kinds = {"branches": "heads", "converts": "convert", "tags": "tags", "pullRequests": "pr"}
            found: dict[str, list[dict[str, str]]] = {kind: [] for kind in kinds}
            for (kind, folder), (ref, commit) in itertools.product(kinds.items(), repo.refs.items()):
                if ref.startswith(prefix := f"refs/{folder}/"):
                    found[kind].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit})
            return self.json(found)
        if verb == "discussions":
            pulls = [
                {
                    "title": repo.state["commits"][commit]["title"],
                    "num": int(name.removeprefix("refs/pr/")),
                    "author": {"name": "user"},
                    "createdAt": "2024-01-01T00:00:00.000Z",
                    "status": "open",
                    "repo": {"name": repo_id, "type": "model"},
                    "isPullRequest": True,
                }
                for name, commit in repo.refs.items()
                if name.startswith("refs/pr/")
            ]
            return self.json({"discussions": pulls, "count": len(pulls), "start": 0})
        if verb == "tree":
            return self.tree(repo, repo.resolve(revision), "/".join(rest[2:]))
        raise Refused(404, f"no such route here: {self.command} {self.path}", "EntryNotFound")

    def tree(self, repo: Repo, commit: str, folder: str) -> tuple[Any, ...]:
        """All files below a folder; the client asks for folders too, and does without."""
        entries = []
        for path, entry in sorted(repo.files(commit).items()):
            if path.startswith(f"{folder}/" if folder else ""):
                entries.append({"type": "file", "oid": entry["oid"], "size": entry["size"], "path": path})
                if entry["lfs"]:
                    pointer_size = len(lfs_pointer(entry["lfs"], entry["size"]))
                    entries[-1]["lfs"] = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": pointer_size}
        if folder and not entries:
            raise Refused(404, f"{folder} does not exist on this revision", "EntryNotFound")
        return self.json(entries)

    def change(self, repo_id: str, repo: Repo, verb: str, name: str) -> tuple[Any, ...]:
        if verb == "commit":
            lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
            oid, number = repo.apply(name, lines, self.query.get("create_pr") == "1")
            url = None if number is None else f"{self.hub.url}/{repo_id}/discussions/{number}"
            commit_url = f"{self.hub.url}/{repo_id}/commit/{oid}"
            return self.json({"success": True, "commitOid": oid, "commitUrl": commit_url, "pullRequestUrl": url})
        payload = json.loads(self.body)
        if verb == "branch":
            repo.add_ref(f"refs/heads/{name}", repo.resolve(payload.get("startingPoint", "main")))
            return self.json({})
        if verb == "tag":
            repo.add_ref(f"refs/tags/{payload['tag']}", repo.resolve(name))
            return self.json({})
        remote = repo.files(repo.resolve(name))
        ignored = repo.content(remote[".gitignore"]).decode().split() if ".gitignore" in remote else []
        files = []
        for file in payload["files"]:
            entry = remote.get(file["path"])
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            oid = entry and (entry["lfs"] or entry["oid"])
            skip = any(fnmatch(file["path"], pattern) for pattern in ignored)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": skip, "oid": oid})
        return self.json({"files": files})

    def lfs_batch(self, repo_id: str) -> tuple[Any, ...]:
        repo = self.hub.state.repo(repo_id, self.record.user)
        if not self.may_write:
            raise Refused(403, "this token may not write")
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if not repo.object_path(item["oid"]).is_file():
                href = f"{self.hub.url}/lfs/{repo_id}/{item['oid']}"
                entry["actions"] = {"upload": {"href": f"{href}?signature=1"}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        return self.json({"transfer": "basic", "objects": objects})

    def lfs_object(self) -> tuple[Any, ...]:
        """Storage beside the Hub: a PUT carries a signature in place of the token."""
        repo_id, oid = "/".join(self.parts[1:3]), self.parts[3]
        if self.command == "PUT":
            if self.query.get("signature") != "1":
                raise Refused(403, "unsigned upload")
            Repo(self.hub.state.folder / repo_id).store_large(oid, self.body)
        elif not self.hub.state.repo(repo_id, self.record.user).object_path(oid).is_file():
            raise Refused(404, "the upload did not arrive")
        return self.json({})

    def resolve(self, repo: Repo, revision: str, path: str) -> tuple[Any, ...]:
        commit = repo.resolve(revision)
        entry = repo.files(commit).get(path)
        headers = {"X-Repo-Commit": commit}
        if entry is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = repo.content(entry)
        headers["ETag"] = f'"{entry["lfs"] or entry["oid"]}"'
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return 200, content, headers
