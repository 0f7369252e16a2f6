"""One repository during one publication: read, compared, changed, and taken back where that failed."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from ham10000.hub_upload.hub_client import FAILURES, Failure, Traffic, explain
from ham10000.modeling import Ham10000Error

# What a release owns in its repository. A file of these names that the new release no longer has is an earlier
# release's, such as a shard of weights that are one file now, and goes. All else is the user's, and stays.
OWNED_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*_ham10000.py",
    "handler.py",
    "split.csv",
    "split.json",
    "train_config.json",
    "history.json",
    "eval_results.json",
    "conversion.json",
)
OWNED_FOLDERS = ("figures", "onnx")
# Likewise what the demo owns in its Space.
SPACE_FOLDERS = ("ham10000",)


def is_owned(path: str, repo_type: str = "model") -> bool:
    """Whether a path in a repository belongs to releases of this package rather than to the user."""
    top, *rest = PurePosixPath(path).parts
    if repo_type == "space":
        return bool(rest) and top in SPACE_FOLDERS
    return top in OWNED_FOLDERS if rest else any(fnmatchcase(path, pattern) for pattern in OWNED_FILES)


def has_content(file: Path, remote: RepoFile) -> bool:
    """Whether a local file is the remote one: by SHA-256 for large files, by git's own hash for others."""
    size = file.stat().st_size
    if size != remote.size:
        return False
    digest = hashlib.sha256() if remote.lfs else hashlib.sha1(b"blob %d\0" % size)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == (remote.lfs.sha256 if remote.lfs else remote.blob_id)


@dataclass(frozen=True)
class Remote:
    """A repository as it was when it was read; commits by the names of branches and tags, and by `refs/pr/N`."""

    private: bool
    branches: dict[str, str]
    tags: dict[str, str]
    pull_requests: dict[str, str]


@dataclass(frozen=True)
class Changes:
    """Paths to upload and to delete; false if there are none."""

    uploads: tuple[str, ...]
    deletions: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.uploads or self.deletions)


class Repository:
    """The repository a folder is published to.

    Args:
        api: The client, with the token.
        repo_id: `user/name`.
        revision: The branch.
        files: The folder's files, by path in the repository.
        traffic: What goes over the wire.
        log: Takes lines on the progress.
        repo_type: `"model"` or `"space"`.
    """

    def __init__(
        self,
        api: HfApi,
        repo_id: str,
        revision: str,
        files: dict[str, Path],
        traffic: Traffic,
        log: Callable[[str], None],
        repo_type: str = "model",
    ) -> None:
        self.repo_type = repo_type
        self.api, self.repo_id, self.revision = api, repo_id, revision
        self.files, self.traffic, self.log = files, traffic, log
        self.made: str | None = None  # what this call asked the Hub to create, in words
        self.start: str | None = None  # the commit that began at, once the Hub has said so
        self.commit_is_absent = False  # a commit whose answer was lost was looked for, and is not there

    @property
    def url(self) -> str:
        """Address of the repository's page."""
        return f"{self.api.endpoint}/{'spaces/' if self.repo_type == 'space' else ''}{self.repo_id}"

    @contextmanager
    def step(self, name: str, aftermath: Callable[[Failure], str]) -> Iterator[None]:
        """Turns every failure within it into one message.

        Args:
            name: What is being done, in words.
            aftermath: Says how the Hub was left, after putting it right where it can.

        Raises:
            Ham10000Error: In place of whatever the client raised, and without it: its text may hold the token.
        """
        try:
            yield
        except Ham10000Error:
            raise
        except FAILURES as error:
            failure = self.explain(error)
            message = f"{name} failed for {self.repo_id!r}: {failure.what}. {aftermath(failure)} {failure.advice}"
            raise Ham10000Error(message) from None

    def explain(self, error: BaseException) -> Failure:
        """The client's exception in words without the token."""
        return explain(error, str(self.api.token), self.traffic)

    def read(self) -> Remote | None:
        """Reads visibility and refs; None if there is no such repository."""
        try:
            info = self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:  # 401 under this name: the token was not accepted
                raise
            return None
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type, include_pull_requests=True)
        return Remote(
            private=bool(info.private),
            branches={branch.name: branch.target_commit for branch in refs.branches},
            tags={tag.name: tag.target_commit for tag in refs.tags},
            pull_requests={request.ref: request.target_commit for request in refs.pull_requests or []},
        )

    def compare(self, revision: str | None) -> Changes:
        """What a commit on `revision` has to change; everything is new where that is None."""
        where: dict[str, Any] = {"revision": revision, "repo_type": self.repo_type}
        entries = [] if revision is None else self.api.list_repo_tree(self.repo_id, recursive=True, **where)
        there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        return Changes(
            tuple(
                path for path, file in self.files.items() if path not in there or not has_content(file, there[path])
            ),
            tuple(path for path in there if path not in self.files and is_owned(path, self.repo_type)),
        )

    def prepare(self, remote: Remote | None, private: bool) -> str | None:
        """Makes repository and branch where they are absent, and returns the branch's head."""
        if remote is None:
            self.made = "repository"
            sdk = "gradio" if self.repo_type == "space" else None
            self.api.create_repo(self.repo_id, private=private, repo_type=self.repo_type, space_sdk=sdk)
            self.start = self.api.repo_info(self.repo_id, repo_type=self.repo_type).sha
            self.log(f"Created {'private' if private else 'public'} repository {self.repo_id}")
            branches = {"main": self.start}
        else:
            branches = dict(remote.branches)
        base = branches.get("main")
        if self.revision not in branches and base is not None:
            self.made = self.made or f"branch {self.revision!r}"
            self.api.create_branch(self.repo_id, branch=self.revision, revision=base, repo_type=self.repo_type)
            self.start = base
            self.log(f"Created branch {self.revision} from main")
        return branches.get(self.revision, base)

    def commit(
        self, changes: Changes, parent: str | None, message: str, create_pr: bool, known: set[str]
    ) -> tuple[str, str | None]:
        """Makes one commit, refused by the Hub if the branch is not at `parent` any more.

        Args:
            changes: What to change.
            parent: Head of the branch.
            message: The commit's message.
            create_pr: Open a pull request instead.
            known: Pull requests that are open already, as `refs/pr/N`.

        Returns:
            The commit, and the address of the pull request.
        """
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationDelete(path_in_repo=path, is_folder=False) for path in changes.deletions),
            *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=self.files[path]) for path in changes.uploads),
        ]
        size = sum(self.files[path].stat().st_size for path in changes.uploads) / 1e6
        self.log(
            f"Uploading {len(changes.uploads)} of {len(self.files)} files ({size:.1f} MB) to {self.repo_id}, "
            f"deleting {len(changes.deletions)} of an earlier release"
        )
        try:
            info = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=self.revision,
                parent_commit=parent,
                create_pr=create_pr,
                repo_type=self.repo_type,
            )
        except FAILURES as error:
            if not (self.traffic.commit_sent and self.explain(error).uncertain):
                raise
            arrived = self.find_commit(parent, known if create_pr else None)
            if arrived is None:
                raise
            self.log("The Hub's answer to the commit was lost, but the commit has arrived")
            return arrived
        return info.oid, info.pr_url

    def find_commit(self, parent: str | None, known: set[str] | None) -> tuple[str, str | None] | None:
        """Looks for a commit whose answer was lost, on the branch or (`known` given) among new pull requests."""
        try:
            remote = self.read()
            if remote is None:
                found = {}
            elif known is None:
                head = remote.branches.get(self.revision)
                found = {} if head in (None, parent) else {str(head): str(head)}
            else:
                found = {ref: commit for ref, commit in remote.pull_requests.items() if ref not in known}
            for ref, commit in found.items():
                if not self.compare(ref):
                    return commit, None if known is None else f"{self.url}/discussions/{ref.rsplit('/', 1)[-1]}"
        except FAILURES:
            return None
        self.commit_is_absent = True
        return None

    def take_back(self, failure: Failure) -> str:
        """Removes what this call created, as long as nothing was put into it, and says how the Hub was left."""
        left = f"The {self.made} may be on the Hub now, without this release in it; running again uses it."
        if self.traffic.commit_sent and failure.uncertain and not self.commit_is_absent:
            unknown = (
                "Whether the commit arrived cannot be told, because the Hub could not be read afterwards; it is there "
                "in whole or not at all."
            )
            return f"{unknown} {left}" if self.made else unknown
        if self.made is None or (self.start is None and not failure.uncertain):
            unsure = self.traffic.commit_sent and failure.uncertain
            nothing = "The commit did not arrive: read again just now, the Hub was as before."
            return nothing if unsure else "Nothing was changed on the Hub."
        try:
            remote = self.read()
            whole = self.made == "repository"
            if remote is None or not (whole or self.revision in remote.branches):
                return "Nothing was changed on the Hub."
            heads = set(remote.branches.values()) if whole else {remote.branches[self.revision]}
            # Never delete what somebody has put something into, nor what may not be ours.
            if heads == {self.start} and not (whole and (remote.tags or remote.pull_requests)):
                if whole:
                    self.api.delete_repo(self.repo_id, repo_type=self.repo_type)
                else:
                    self.api.delete_branch(self.repo_id, branch=self.revision, repo_type=self.repo_type)
                return f"The {self.made} created for it was removed again, so the Hub is as it was."
        except FAILURES:
            pass
        return left


__all__ = [
    "OWNED_FILES",
    "OWNED_FOLDERS",
    "SPACE_FOLDERS",
    "Changes",
    "Remote",
    "Repository",
    "has_content",
    "is_owned",
]
