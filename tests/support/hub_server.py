"""A small Hub over loopback: as much of its HTTP API as unmodified `huggingface_hub` and `transformers` use.

It offers the basic LFS transfer and no Xet, so the client must run with `HF_HUB_DISABLE_XET=1`. Every request is
recorded as "METHOD /path" (`server.requests`); faults are scripted (`server.fail`).
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER = "hf_WriterTokenOfTheTestsHubXXXXXXXXXX"
READER = "hf_ReaderTokenOfTheTestsHubXXXXXXXXXX"
STRANGER = "hf_StrangerTokenOfTheTestsHubXXXXXXXX"
LARGE = (".safetensors", ".onnx", ".pt", ".bin")
_USERS = {f"Bearer {token}": user for token, user in ((WRITER, "user"), (READER, "user"), (STRANGER, "stranger"))}
Answer = tuple[int, bytes, dict[str, str]]


class Refused(Exception):
    """An answer other than 2xx, with the code the Hub sends in `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class Repo:
    """One repository: contents by their ids, the ids of commits' files, titles of commits, refs to commits.

    The id of a large file is its SHA-256, which is longer than that of a small one, git's SHA-1.
    """

    def __init__(self, private: bool) -> None:
        self.private = private
        self.objects: dict[str, bytes] = {}
        self.commits: dict[str, dict[str, str]] = {}
        self.titles: dict[str, str] = {}
        self.refs: dict[str, str] = {}
        attributes = self.store_blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        self.commit("refs/heads/main", "initial commit", {".gitattributes": attributes})

    def store_blob(self, content: bytes) -> str:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.objects[oid] = content
        return oid

    def resolve(self, revision: str) -> str:
        """The commit a branch, tag, `refs/...` or commit id stands for."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.refs[name]
        if revision in self.commits:
            return revision
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str) -> dict[str, str]:
        return self.commits[self.resolve(revision)]

    def read(self, revision: str, path: str) -> bytes:
        return self.objects[self.files(revision)[path]]

    def commit(self, ref: str, title: str, files: dict[str, str]) -> str:
        oid = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        self.commits[oid], self.titles[oid], self.refs[ref] = files, title, oid
        return oid

    def apply(self, revision: str, lines: list[dict[str, Any]], create_pr: bool) -> tuple[str, int | None]:
        """One commit from the lines of the client's request, or nothing; its id and the number of a pull request."""
        ref = f"refs/heads/{revision}"
        head, files = self.resolve(ref), dict(self.files(ref))
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = self.store_blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = value["oid"]
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        number = 1 + len(self.pulls()) if create_pr else None
        return self.commit(f"refs/pr/{number}" if create_pr else ref, header["summary"], files), number

    def pulls(self) -> dict[int, str]:
        """The titles of the pull requests, by number."""
        refs = {name: commit for name, commit in self.refs.items() if name.startswith("refs/pr/")}
        return {int(name.removeprefix("refs/pr/")): self.titles[commit] for name, commit in refs.items()}


@dataclass
class Fault:
    """What becomes of the next `times` requests whose line the pattern `match` is found in."""

    match: str
    status: int | None = None  # answer this, and do nothing else
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)  # of that answer
    html: bool = False  # answer with a web page, and do nothing else
    cut_after: int | None = None  # read so many bytes of the body, then reset the connection
    lose_answer: bool = False  # do what was asked, then reset the connection
    kill: bool = False  # kill the server before the request has any effect
    before: Callable[[], None] | None = None  # call this, then handle the request as usual


class _Cut(Exception):
    """The connection ends here, without an answer."""


class HubServer:
    """The server, which keeps its repositories when it is killed and started again.

    `WRITER` and `READER` are tokens of "user", `STRANGER` of "stranger". A Space is named `spaces/user/name` here.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.uploaded_bytes = 0  # of file content received so far, as large files or within commits
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self.port = 0  # the first start takes a free one, later starts the same again
        self.http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
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

    def record(self, request: str) -> Fault:
        """Notes a request, and says what becomes of it."""
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return Fault("")

    def count(self, match: str) -> int:
        """How many recorded requests match."""
        return sum(re.search(match, request) is not None for request in self.requests)

    def snapshot(self) -> dict[str, Any]:
        """Everything a visitor could see: visibility and refs by repository; commits never change."""
        return {name: {"private": repo.private, "refs": dict(repo.refs)} for name, repo in self.repos.items()}


def _reset(connection: socket.socket) -> None:
    """Ends a connection with RST in place of FIN: the other side sees a cut, not an orderly end."""
    with contextlib.suppress(OSError):  # it may be gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _json(value: Any) -> Answer:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


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
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        self.parts = [unquote(part) for part in split.path.strip("/").split("/")]
        line = f"{self.command} {split.path}"
        fault = self.hub.record(line)
        try:
            if fault.kill:
                self.hub.kill()
                raise _Cut
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length if fault.cut_after is None else min(fault.cut_after, length))
            if re.search(r"PUT /lfs/|POST .*/commit/", line):
                self.hub.uploaded_bytes += len(self.body)
            if fault.cut_after is not None:
                raise _Cut
            if fault.status is not None:
                raise Refused(fault.status, "scripted fault")
            if fault.before is not None:
                fault.before()
            with self.hub.lock:
                answer = (200, b"<html>please log in</html>", {}) if fault.html else self.route()
            if fault.lose_answer:
                raise _Cut
            self.answer(*answer)
        except Refused as refused:
            self.answer_error(refused, fault.headers)
        except (_Cut, OSError):
            _reset(self.connection)
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
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

    def repo(self, repo_id: str) -> Repo:
        """The repository, if it exists and the user may see it; the Hub does not tell these two apart."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and f"{self.user}" not in repo_id.split("/")):
            raise Refused(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def check_write(self, owner: str) -> None:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        if self.user != owner or not self.may_write:
            raise Refused(403, f'You don\'t have the rights to write to a model under the namespace "{owner}"')

    def route(self) -> Answer:
        """Status, body and headers of the answer."""
        token = self.headers.get("Authorization")
        if token is not None and token not in _USERS:
            raise Refused(401, "Invalid credentials in Authorization header")
        self.user, self.may_write = _USERS.get(token or ""), token not in (None, f"Bearer {READER}")
        match self.parts:
            # Storage beside the Hub: a signature replaces the token.
            case ["lfs", *name, oid]:
                if self.query.get("signature") != "1" or hashlib.sha256(self.body).hexdigest() != oid:
                    raise Refused(403, "unsigned upload, or not the announced SHA-256")
                self.hub.repos["/".join(name)].objects[oid] = self.body
                return _json({})
            case ["api", "validate-yaml"]:
                return _json({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self.create(json.loads(self.body))
            case ["api", "models" | "spaces" as kind, owner, name, *rest]:
                return self.repo_api(f"{'spaces/' if kind == 'spaces' else ''}{owner}/{name}", owner, rest)
            case [owner, name, "info", "lfs", *_]:
                return self.lfs_batch(f"{owner}/{name.removesuffix('.git')}")
            case [owner, name, "resolve", revision, *path]:
                return self.resolve(self.repo(f"{owner}/{name}"), revision, "/".join(path))
        raise Refused(404, f"no such route here: {self.command} {self.path}")

    def create(self, payload: dict[str, Any]) -> Answer:
        is_space, owner = payload.get("type") == "space", payload.get("organization") or self.user
        if is_space and not payload.get("sdk"):
            raise Refused(400, "A Space needs an sdk")
        repo_id = f"{'spaces/' if is_space else ''}{owner}/{payload['name']}"
        self.check_write(owner)
        if repo_id in self.hub.repos:
            raise Refused(409, "You already created this model repo")
        self.hub.repos[repo_id] = Repo(payload.get("visibility") == "private")
        return _json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id})

    def repo_api(self, repo_id: str, owner: str, rest: list[str]) -> Answer:
        repo = self.repo(repo_id)
        verb, revision = (rest + ["", ""])[:2]
        if verb in ("commit", "branch", "tag", "preupload"):
            if self.query.get("create_pr") != "1":  # a pull request is open to everyone with a token
                self.check_write(owner)
            return self.change(repo_id, repo, verb, revision)
        if verb in ("", "revision"):
            commit = repo.resolve(revision or "main")
            siblings = [{"rfilename": path} for path in repo.files(commit)]
            return _json({"id": repo_id, "sha": commit, "private": repo.private, "siblings": siblings})
        if verb == "refs":
            found: dict[str, list[dict[str, str]]] = {"heads": [], "tags": [], "pr": []}
            for ref, commit in repo.refs.items():
                _, kind, name = ref.split("/", 2)
                found[kind].append({"name": name, "ref": ref, "targetCommit": commit})
            return _json({"branches": found["heads"], "converts": [], "tags": found["tags"]})
        if verb == "discussions":
            common = {"author": {"name": "user"}, "createdAt": "2024-01-01T00:00:00.000Z", "status": "open"}
            common |= {"repo": {"name": repo_id, "type": "model"}, "isPullRequest": True}
            pulls = [{"title": title, "num": number, **common} for number, title in repo.pulls().items()]
            return _json({"discussions": pulls, "count": len(pulls), "start": 0})
        if verb == "tree":
            return self.tree(repo, revision, "/".join(rest[2:]))
        raise Refused(404, f"no such route here: {self.command} {self.path}", "EntryNotFound")

    def tree(self, repo: Repo, revision: str, folder: str) -> Answer:
        """All files below a folder; the client asks for folders too, and does without."""
        entries = []
        for path, oid in sorted(repo.files(revision).items()):
            size = len(repo.objects[oid])
            large = {"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if len(oid) == 64 else {}
            if path.startswith(folder):
                entries.append({"type": "file", "oid": oid, "size": size, "path": path, **large})
        if folder and not entries:
            raise Refused(404, f"{folder} does not exist on this revision", "EntryNotFound")
        return _json(entries)

    def change(self, repo_id: str, repo: Repo, verb: str, name: str) -> Answer:
        if verb == "commit":
            lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
            oid, number = repo.apply(name, lines, self.query.get("create_pr") == "1")
            page = f"{self.hub.url}/{repo_id}"
            pull = None if number is None else f"{page}/discussions/{number}"
            return _json({"commitOid": oid, "commitUrl": f"{page}/commit/{oid}", "pullRequestUrl": pull})
        payload = json.loads(self.body)
        if verb in ("branch", "tag"):
            ref, start = f"refs/heads/{name}", payload.get("startingPoint", "main")
            if verb == "tag":
                ref, start = f"refs/tags/{payload['tag']}", name
            if ref in repo.refs:
                raise Refused(409, "Reference already exists")
            repo.refs[ref] = repo.resolve(start)
            return _json({})
        remote, files = repo.files(name), []
        ignored = repo.read(name, ".gitignore").decode().split() if ".gitignore" in remote else []
        for path in (file["path"] for file in payload["files"]):
            mode = "lfs" if path.endswith(LARGE) else "regular"
            skip = any(fnmatch(path, pattern) for pattern in ignored)
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": skip, "oid": remote.get(path)})
        return _json({"files": files})

    def lfs_batch(self, repo_id: str) -> Answer:
        repo = self.repo(repo_id)
        if not self.may_write:
            raise Refused(403, "this token may not write")
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in repo.objects:
                href = f"{self.hub.url}/lfs/{repo_id}/{item['oid']}?signature=1"
                entry["actions"] = {"upload": {"href": href}}
            objects.append(entry)
        return _json({"transfer": "basic", "objects": objects})

    def resolve(self, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.resolve(revision)
        oid = repo.files(commit).get(path)
        if oid is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = repo.objects[oid]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"'}
        if len(oid) == 64:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return 200, content, headers
