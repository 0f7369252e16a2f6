"""Repositories of the tests' Hub, all on disk, so that a server that was killed starts again where it stopped.

<folder>/<user>/<name>/repo.json       visibility, refs and commits; replaced in one rename, so always whole
<folder>/<user>/<name>/objects/<oid>   contents: git blobs by SHA-1, large files by SHA-256
"""

import base64
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

INITIAL_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


class Refused(Exception):
    """An answer other than 2xx, with the code the Hub sends in `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_oid(content: bytes) -> str:
    """The name git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git itself stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def owner(repo_id: str) -> str:
    """Whose a repository is; a Space is named `spaces/user/name` here, as in its address."""
    return repo_id.removeprefix("spaces/").split("/")[0]


class Repo:
    """One repository; every change is written before the method returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = json.loads((folder / "repo.json").read_text())

    @classmethod
    def create(cls, folder: Path, private: bool) -> "Repo":
        (folder / "objects").mkdir(parents=True)
        (folder / "repo.json").write_text(json.dumps({"private": private, "refs": {}, "commits": {}}))
        repo = cls(folder)
        files = {path: repo.store_blob(content) for path, content in INITIAL_FILES.items()}
        repo.commit("refs/heads/main", "initial commit", files, parent=None)
        return repo

    @property
    def private(self) -> bool:
        return self.state["private"]

    @property
    def refs(self) -> dict[str, str]:
        return self.state["refs"]

    def save(self) -> None:
        temporary = self.folder / f"repo.{uuid.uuid4().hex}.tmp"
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.folder / "repo.json")

    def object_path(self, oid: str) -> Path:
        return self.folder / "objects" / oid

    def store_blob(self, content: bytes) -> dict[str, Any]:
        oid = git_oid(content)
        self.object_path(oid).write_bytes(content)
        return {"oid": oid, "size": len(content), "lfs": None}

    def store_large(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "the content does not have the announced SHA-256")
        temporary = self.object_path(f"{uuid.uuid4().hex}.tmp")
        temporary.write_bytes(content)
        temporary.replace(self.object_path(oid))

    def resolve(self, revision: str) -> str:
        """The commit a branch, tag, `refs/...` or commit id stands for."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.refs[name]
        if revision in self.state["commits"]:
            return revision
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, commit: str) -> dict[str, dict[str, Any]]:
        return self.state["commits"][commit]["files"]

    def commit(self, ref: str, title: str, files: dict[str, dict[str, Any]], parent: str | None) -> str:
        body = {"title": title, "files": files, "parent": parent, "number": len(self.state["commits"])}
        oid = hashlib.sha1(json.dumps(body, sort_keys=True).encode() + uuid.uuid4().bytes).hexdigest()
        self.state["commits"][oid] = body
        self.refs[ref] = oid
        self.save()
        return oid

    def apply(self, revision: str, lines: list[dict[str, Any]], create_pr: bool) -> tuple[str, int | None]:
        """One commit from the lines of the client's request: all of it or, after an error, nothing.

        Returns:
            The commit's id, and the number of the pull request where one was opened.
        """
        ref = f"refs/heads/{revision}"
        if ref not in self.refs:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = self.refs[ref]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.files(head))
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = self.store_blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if not self.object_path(value["oid"]).is_file():
                    raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                pointer = lfs_pointer(value["oid"], value["size"])
                files[value["path"]] = {"oid": git_oid(pointer), "size": value["size"], "lfs": value["oid"]}
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        number = None
        if create_pr:
            number = 1 + sum(name.startswith("refs/pr/") for name in self.refs)
            ref = f"refs/pr/{number}"
        return self.commit(ref, header["summary"], files, parent=head), number

    def add_ref(self, name: str, commit: str) -> None:
        if name in self.refs:
            raise Refused(409, "Tag reference exists already" if "tags" in name else "Reference already exists")
        self.refs[name] = commit
        self.save()

    def content(self, entry: dict[str, Any]) -> bytes:
        return self.object_path(entry["lfs"] or entry["oid"]).read_bytes()


class HubState:
    """All repositories, and who may see and change them.

    Args:
        folder: Where they live.
        tokens: User name by token. A user writes to the namespace of that name.
        read_tokens: User name by token, for tokens that only read.
    """

    def __init__(self, folder: Path, tokens: dict[str, str], read_tokens: dict[str, str]) -> None:
        self.folder, self.tokens, self.read_tokens = folder, tokens, read_tokens

    def user(self, authorization: str | None) -> tuple[str | None, bool]:
        """Name of the requester (None: anonymous) and whether its token may write."""
        if authorization is None:
            return None, False
        token = authorization.removeprefix("Bearer ")
        if token in self.tokens:
            return self.tokens[token], True
        if token in self.read_tokens:
            return self.read_tokens[token], False
        raise Refused(401, "Invalid credentials in Authorization header")

    def repo(self, repo_id: str, user: str | None) -> Repo:
        """The repository, if it exists and the user may see it; the Hub does not tell these two apart."""
        folder = self.folder / repo_id
        if (folder / "repo.json").is_file():
            repo = Repo(folder)
            if not repo.private or user == owner(repo_id):
                return repo
        raise Refused(401 if user is None else 404, "Repository not found", "RepoNotFound")

    def check_write(self, repo_id: str, user: str | None, may_write: bool) -> None:
        namespace = owner(repo_id)
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user != namespace or not may_write:
            raise Refused(403, f'You don\'t have the rights to write to a model under the namespace "{namespace}"')

    def create(self, repo_id: str, private: bool) -> None:
        if (self.folder / repo_id).exists():
            raise Refused(409, "You already created this model repo")
        Repo.create(self.folder / repo_id, private)

    def snapshot(self) -> dict[str, Any]:
        """Everything a visitor could see: visibility, refs and the commits they lead to, by repository."""
        repos = {}
        for path in sorted(self.folder.rglob("repo.json")):
            repo = Repo(path.parent)
            repos[path.parent.relative_to(self.folder).as_posix()] = {
                "private": repo.private,
                "refs": dict(repo.refs),
                "trees": {name: repo.files(commit) for name, commit in repo.refs.items()},
            }
        return repos
