"""Uploads a finished folder to the Hub as one commit and a tag, or leaves the Hub as it was."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id

from ham10000.hub_upload.hub_client import Failure, bounded_client, find_token, redact
from ham10000.hub_upload.hub_repository import Remote, Repository
from ham10000.modeling import Ham10000Error

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/-]{0,99}")


@dataclass(frozen=True)
class Published:
    """Where a folder is on the Hub, and what it took.

    Attributes:
        repo_id: `user/name`.
        url: Page of the release.
        commit: Id of the commit that holds the folder.
        tag: Name of the release, None for a pull request or where none was asked for.
        pull_request_url: Page of the pull request, if one was opened.
        created: Whether the repository is new.
        unchanged: Whether the Hub held these files already, so that no commit was made.
        uploaded: Paths of new and changed files.
        deleted: Paths of an earlier release's files that went.
    """

    repo_id: str
    url: str
    commit: str
    tag: str | None = None
    pull_request_url: str | None = None
    created: bool = False
    unchanged: bool = False
    uploaded: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


def check_names(repo_id: str, *, tag: str | None, revision: str) -> None:
    """Checks what can be known to be wrong without asking the Hub.

    Args:
        repo_id: `user/name` or `organisation/name`.
        tag: Name of the release.
        revision: Name of the branch.

    Raises:
        Ham10000Error: If one of them can be no such name.
    """
    try:
        validate_repo_id(repo_id)
        problem = "" if repo_id.count("/") == 1 else "the user's or organisation's name is missing"
    except HFValidationError as error:
        problem = str(error).rstrip(".")
    if problem:
        raise Ham10000Error(f"repo_id {repo_id!r}: {problem}. Expected 'user/name', such as 'user/ham10000-fusion'.")
    for field, name in {"tag": tag, "revision": revision}.items():
        if name is None:
            continue
        bad_form = not _NAME.fullmatch(name) or re.search(r"\.\.|//|\.lock$|[./]$", name)
        if bad_form or name.startswith("refs/") or (field == "tag" and "/" in name):
            kind, example = ("tag", "v1.0") if field == "tag" else ("branch", "main")
            raise Ham10000Error(f"{field} {name!r} is no name for a {kind}; expected one such as {example!r}.")
    if tag == revision:
        raise Ham10000Error(f"Tag and branch are both named {tag!r}; give the tag another name, such as 'v1.0'.")


def list_files(folder: Path) -> dict[str, Path]:
    """A folder's files by their path in the repository, without those git and huggingface_hub keep for themselves.

    Args:
        folder: The finished folder.

    Raises:
        Ham10000Error: If there is none.
    """
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {path: found[path] for path in filter_repo_objects(found, ignore_patterns=DEFAULT_IGNORE_PATTERNS)}
    if not files:
        raise Ham10000Error(f"{str(folder)!r} holds no files; expected the finished folder of a release.")
    return files


def next_tag(tag: str, taken: set[str]) -> str:
    """The first free name after `tag`, such as v1.1 after v1.0."""
    match = re.fullmatch(r"(.*?)(\d+)", tag)
    stem, number = (match[1], int(match[2]) + 1) if match else (f"{tag}.", 1)
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def check_remote(repo_id: str, remote: Remote | None, revision: str, tag: str | None, private: bool) -> None:
    """Refuses what the state of the repository forbids, apart from the tag's own commit.

    Raises:
        Ham10000Error: If a private release would be public, or a name is both a branch's and a tag's.
    """
    if remote is None:
        return
    if private and not remote.private:
        raise Ham10000Error(
            f"{repo_id!r} exists and is public, but a private release was asked for; nothing was uploaded. Make it "
            "private in its settings on the Hub, or publish under another name."
        )
    for name, others, kind in ((tag, remote.branches, "branch"), (revision, remote.tags, "tag")):
        if name in others:
            raise Ham10000Error(f"{repo_id!r} has a {kind} named {name!r} already; choose another name.")


def publish_folder(
    folder: Path,
    repo_id: str,
    *,
    api: HfApi,
    tag: str | None = "v1.0",
    revision: str = "main",
    private: bool = False,
    create_pr: bool = False,
    commit_message: str,
    log: Callable[[str], None] = print,
    repo_type: str = "model",
) -> Published:
    """Uploads a finished folder as one atomic commit, and tags it.

    The same folder again makes no commit, and a run that was cut off is completed by running it again. Not done by
    `HfApi.upload_folder`: where hf_xet is installed, that makes as many commits as it likes.

    Args:
        folder: What to publish, complete.
        repo_id: `user/name`; the repository is created if it is absent.
        api: Where to, and with which token (else that of `hf auth login` or `HF_TOKEN`).
        tag: Name of the release, or None.
        revision: Branch, created from main if it is absent.
        private: Create the repository as private. An existing one keeps its visibility.
        create_pr: Open a pull request to main instead of committing. It is no release, so it gets no tag.
        commit_message: First line of the commit's message.
        log: Takes lines on the progress.
        repo_type: `"model"`, or `"space"` for a Gradio Space.

    Returns:
        Where the folder is now.

    Raises:
        Ham10000Error: If something was wrong. The message says what, how the Hub was left, and what to do; it never
            holds the token.
    """
    check_names(repo_id, tag=tag, revision=revision)
    if create_pr and revision != "main":
        raise Ham10000Error(f"A pull request is always opened against main; expected no revision, got {revision!r}.")
    if not commit_message.strip():
        raise Ham10000Error("The commit message is empty; expected a line that says what this release is.")
    files = list_files(Path(folder))
    token = find_token(api)
    api = copy.copy(api)
    api.token = token
    with bounded_client() as traffic:
        repository = Repository(
            api, repo_id, revision, files, traffic, lambda line: log(redact(line, token)), repo_type
        )
        if create_pr and tag is not None:
            repository.log(f"A pull request is no release, so tag {tag} is not set")
        try:
            return _publish(repository, None if create_pr else tag, private, create_pr, commit_message)
        except KeyboardInterrupt:
            repository.log(repository.take_back(Failure(None, "interrupted", "", uncertain=True)))
            raise


def _publish(
    repository: Repository, tag: str | None, private: bool, create_pr: bool, commit_message: str
) -> Published:
    repo_id, revision, url = repository.repo_id, repository.revision, repository.url
    with repository.step("Reading the repository", lambda _: "Nothing was changed on the Hub."):
        remote = repository.read()
        check_remote(repo_id, remote, revision, tag, private)
        branches = {} if remote is None else remote.branches
        changes = repository.compare(branches.get(revision, branches.get("main")))
        tagged = None if remote is None or tag is None else remote.tags.get(tag)
        changes_to_tag = None if tagged is None else repository.compare(tagged)
    if remote is None and create_pr:
        raise Ham10000Error(f"There is no repository {repo_id!r} to open a pull request in; publish without it first.")
    if remote is not None and remote.private and not private:
        repository.log(f"{repo_id} is private, and stays so")
    if remote is not None and tag is not None and changes_to_tag:
        raise Ham10000Error(
            f"{repo_id!r} has a release {tag!r} with other files at commit {str(tagged)[:10]}; nothing was uploaded. "
            f"A release never changes: give this one a new tag, such as {next_tag(tag, set(remote.tags))!r}."
        )
    if tagged is not None and revision in branches:
        repository.log(f"Release {tag} of {repo_id} holds these files already; nothing to do")
        if changes:
            repository.log(f"Branch {revision} was changed after that release, and was left alone")
        return Published(repo_id, f"{url}/tree/{tag}", tagged, tag, unchanged=True)

    pull_request = None
    with repository.step("Publishing", repository.take_back):
        head = repository.prepare(remote, private)
        if changes or head is None:
            known = set() if remote is None else set(remote.pull_requests)
            commit, pull_request = repository.commit(changes, head, commit_message, create_pr, known)
            repository.log(f"Opened {pull_request}" if create_pr else f"Committed {commit[:10]} to {revision}")
        else:
            commit = head
            repository.log(f"Branch {revision} of {repo_id} holds these files already; no commit is needed")
    left = f"Commit {commit[:10]} is on the Hub" + ("; only its tag may be missing." if tag else ".")
    with repository.step(f"Completing release {tag or commit[:10]}", lambda _: left):
        missing = repository.compare(commit).uploads if changes and not create_pr else ()
        if tag is not None and tagged is None and not missing:
            repository.api.create_tag(repo_id, tag=tag, revision=commit, repo_type=repository.repo_type)
            repository.log(f"Tagged {tag}")
    if missing:
        raise Ham10000Error(
            f"Commit {commit[:10]} of {repo_id!r} lacks {', '.join(missing)}, so it was not tagged. The repository's "
            ".gitignore names them: take them out of it and run the same command again."
        )
    page = pull_request or (url if repository.repo_type == "space" else f"{url}/tree/{tag or revision}")
    return Published(
        repo_id, page, commit, tag, pull_request, remote is None, not changes, changes.uploads, changes.deletions
    )


__all__ = ["Published", "check_names", "list_files", "next_tag", "publish_folder"]
