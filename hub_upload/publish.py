"""Publishes a finished folder on the Hub: one commit, which arrives complete or not at all, and a tag."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx2
from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub import CommitOperationDelete as Delete
from huggingface_hub import HfApi, get_session, get_token, set_client_factory
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OIDCError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id

from ham10000.modeling import Ham10000Error
from ham10000.training.utils.files import JsonObject

# What a release owns in its repository: the names that this package writes, or has written. A file of these names that
# the new release no longer has belongs to an earlier one, such as a shard of weights that are one file now, and is
# deleted. Every other file is the user's.
_OWNED = {
    "model": r"figures/(confusion_matrix|per_class|reliability|subgroups|training_curves)\.png"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|onnx/model\.onnx(\.data)?"
    r"|(configuration|fusion|image_processing|image_statistics|modeling|pipeline|processing)_ham10000\.py|handler\.py"
    r"|split\.(csv|json)|(train_config|history|eval_results|conversion)\.json",
    "space": r"ham10000/.+",
}
# The last line of a card that was rendered here; the Hub does not show it.
_SEAL = re.compile(r"\n<!-- rendered by ham10000: ([0-9a-f]{64}) -->\n\Z")
# Seconds for one read or write; huggingface_hub sets none, and waits for ever.
_TIMEOUT = 60.0
_BRANCH = re.compile(r"(?!refs/|.*(?:\.\.|//))\w[\w.+/-]{0,99}(?<![./])(?<!\.lock)", re.ASCII)
# What huggingface_hub raises: its own errors are OSErrors, large files fail with RuntimeErrors, unusable answers with
# ValueErrors (JSON) and LookupErrors.
_FAILURES = (httpx2.HTTPError, OIDCError, OSError, RuntimeError, ValueError, LookupError)
# What to do before the same command is run again, by the status of the answer; None where there was none.
_ADVICE = {
    None: "Check the network",
    400: "Correct what the Hub complains about",
    401: "The token is missing, wrong or expired: log in with `hf auth login`, or set HF_TOKEN to one that may write",
    403: "This token may not do that: take a token with write access (https://huggingface.co/settings/tokens)",
    404: "There is no such repository or revision, or not for this token: check the repository id and the token",
    409: "Something else is changing the repository: wait a minute",
    412: "Somebody else pushed in the meantime, and nothing of theirs was overwritten: look at their commit",
    413: "The upload is too large for the Hub: split the weights into smaller shards",
    429: "The Hub limits the rate of requests: wait a few minutes",
}
_FAULT = "The Hub has a fault: wait a few minutes (https://status.huggingface.co)"
# Where the same command would fail again.
_FINAL: dict[int | None, str] = {
    402: "The plan of this account does not include that: see https://huggingface.co/pricing.",
    501: "This Hub does not support the request, and trying again will not help. If it was a pull request, publish "
    "without --create_pr, to a branch of your own.",
}


class Published(NamedTuple):
    """The page of a release or pull request, the commit that contains it, and the paths it changed or deleted."""

    url: str
    commit: str
    uploaded: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


def check_names(repo_id: str, *, tag: str | None, revision: str) -> None:
    """Raises `Ham10000Error` for a repository id, a tag or a branch that is wrong without asking the Hub."""
    try:
        if "/" not in repo_id:
            raise HFValidationError("the user's or organisation's name is missing")
        validate_repo_id(repo_id)
    except HFValidationError as error:
        expected = "Expected 'user/name', such as 'user/ham10000-fusion'."
        raise Ham10000Error(f"repo_id {repo_id!r}: {str(error).rstrip('.')}. {expected}") from error
    if tag is not None and ("/" in tag or not _BRANCH.fullmatch(tag)):
        raise Ham10000Error(f"tag {tag!r} is not a valid name; expected one such as 'v1.0'.")
    if not _BRANCH.fullmatch(revision):
        raise Ham10000Error(f"revision {revision!r} is not a valid name; expected one such as 'main'.")
    if tag == revision:
        raise Ham10000Error(f"Tag and branch are both named {tag!r}; give the tag another name, such as 'v1.0'.")


def find_token(api: HfApi) -> str:
    """Returns the token that calls of `api` send; raises `Ham10000Error` if there is none."""
    with _one_message("Reading the token", ""):
        token = get_token() if api.token in (None, True) else api.token
    if not token:
        raise Ham10000Error(
            "No token for the Hub was found, and publishing needs one: log in with `hf auth login`, or set HF_TOKEN "
            "to a token with write access (https://huggingface.co/settings/tokens)."
        )
    return str(token)


def limit_waiting() -> None:
    """Gives every request of huggingface_hub in this process a time limit, for a Hub that never answers."""

    def limit(request: httpx2.Request) -> None:
        given = {kind: seconds for kind, seconds in request.extensions.get("timeout", {}).items() if seconds}
        request.extensions["timeout"] = httpx2.Timeout(_TIMEOUT).as_dict() | given

    # A hook, because the client's own limit would not reach calls that say None; next to the library's hooks.
    hooks = get_session().event_hooks
    hooks = {**hooks, "request": [*hooks["request"], limit]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None))


def seal_card(card: str) -> str:
    """Adds a last line to a rendered card, by which the next push sees whether somebody has edited it since."""
    digest = hashlib.sha256(card.encode()).hexdigest()
    return f"{card}\n<!-- rendered by ham10000: {digest} -->\n"


def is_edited(card: str) -> bool:
    """Whether a card is another one than `seal_card` returned: changed, or never rendered here."""
    seal = _SEAL.search(card)
    return seal is None or hashlib.sha256(card[: seal.start()].encode()).hexdigest() != seal[1]


def redact(text: str, token: str) -> str:
    """Replaces the token, and whatever looks like one, by asterisks."""
    text = text.replace(token, "***") if token else text
    text = re.sub(r"hf_(?:jwt|oauth)_[A-Za-z0-9_.\-]+|hf_[A-Za-z0-9]{16,}", "hf_***", text)
    return re.sub(r"(?i)\b(bearer\s+)[^\s\"')]+", r"\1***", text)


def explain(error: BaseException, token: str) -> str:
    """What happened and what to do, from an exception of the client, without the token."""

    def short(text: str) -> str:
        return redact(" ".join(text.split()), token)[:300].rstrip(".")

    cause = error
    while not isinstance(cause, httpx2.HTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__  # the client wraps the error of an upload into one that names the file
    context = "" if cause is error else short(str(error).split("\n")[0]) + ": "
    words = short(str(cause)) or type(cause).__name__
    # hf_xet, through which large files go where it is installed, gives the status in the text alone.
    match = re.search(r"HTTP status \w+ error \((\d{3})", words)
    status = int(match[1]) if match else None
    if isinstance(cause, HfHubHTTPError):
        status, said = cause.response.status_code, short(cause.server_message or "")
        words = f"the Hub answered {status} {cause.response.reason_phrase}" + (f" ({said})" if said else "")
    elif isinstance(cause, httpx2.HTTPError):
        words = f"the Hub did not answer ({words})"
    elif isinstance(cause, json.JSONDecodeError):
        words = "the Hub's answer is not JSON; a proxy or login page may stand in between"
    advice = _FINAL.get(status, f"{_ADVICE.get(status, _FAULT)}, then run the same command again.")
    rerun = "" if status in _FINAL else ", and a rerun completes a release"
    return f"{context}{words}. A commit arrives complete or not at all{rerun}. {advice}"


@contextmanager
def _one_message(step: str, token: str) -> Iterator[None]:
    """Turns what the client raises into one error, without its cause: the cause's text may contain the token."""
    try:
        yield
    except Ham10000Error:
        raise
    except _FAILURES as error:
        raise Ham10000Error(f"{step} failed: {explain(error, token)}") from None


def is_owned(path: str, repo_type: str = "model") -> bool:
    """Whether a path in a repository belongs to releases of this package rather than to the user."""
    return re.fullmatch(_OWNED[repo_type], path) is not None


def _has_content(file: Path, remote: RepoFile) -> bool:
    """Whether a local file is the remote one: by SHA-256 for large files, by git's own hash for others."""
    size = file.stat().st_size
    if size != remote.size:
        return False
    with file.open("rb") as stream:
        if remote.lfs:
            return hashlib.file_digest(stream, "sha256").hexdigest() == remote.lfs.sha256
        return hashlib.sha1(b"blob %d\0" % size + stream.read()).hexdigest() == remote.blob_id


@dataclass(frozen=True)
class Release:
    """A place on the Hub for a finished folder: a model's or a Gradio Space's repository, a branch and perhaps a tag.

    Repository and branch are created where they are absent. A name that is not valid raises `Ham10000Error`.
    """

    api: HfApi
    repo_id: str
    tag: str | None = "v1.0"
    revision: str = "main"
    repo_type: str = "model"

    def __post_init__(self) -> None:
        check_names(self.repo_id, tag=self.tag, revision=self.revision)

    @property
    def _where(self) -> JsonObject:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    def keep_edited_card(self, folder: Path) -> bool:
        """Takes the repository's README.md, if somebody wrote or edited it there, in place of the rendered one.

        Then a note is printed, and True returned.
        """
        api, where, ours = self.api, self._where, folder / "README.md"
        reading = _one_message(f"Reading the card of {self.repo_id!r}", find_token(api))
        with reading, tempfile.TemporaryDirectory() as scratch:
            if not api.repo_exists(**where):
                return False
            branches, tags = self._refs()
            commit = tags.get(self.tag or "") or branches.get(self.revision) or branches["main"]
            try:
                theirs = api.hf_hub_download(filename=ours.name, revision=commit, local_dir=scratch, **where)
            except EntryNotFoundError:
                return False
            card = Path(theirs).read_bytes()
            if card == ours.read_bytes() or not is_edited(card.decode("utf-8", errors="replace")):
                return False
            ours.write_bytes(card)
        print(
            f"note: the card of {self.repo_id} was edited on the Hub, or not written by this package; it is kept as "
            "it is. --replace_card puts the new one in its place"
        )
        return True

    def publish(
        self, folder: Path, *, commit_message: str, private: bool = False, create_pr: bool = False
    ) -> Published:
        """Uploads a finished folder as one commit, and tags it.

        The same folder again makes no commit, and a run that was cut off is completed by running it again. Not done by
        `HfApi.upload_folder`: where hf_xet is installed, that makes several commits. An existing repository keeps its
        visibility; `create_pr` opens a pull request to main, without a tag. `Ham10000Error` never has the token.
        """
        if create_pr and self.revision != "main":
            raise Ham10000Error(f"A pull request is always opened against main, not {self.revision!r}.")
        if not commit_message.strip():
            raise Ham10000Error("The commit message is empty; expected a line that says what this release is.")
        found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        # Without those that git and huggingface_hub keep for themselves.
        files = {path: found[path] for path in filter_repo_objects(found, ignore_patterns=DEFAULT_IGNORE_PATTERNS)}
        if not files:  # else every file of an earlier release would be deleted
            raise Ham10000Error(f"{str(folder)!r} has no files; expected the finished folder of a release.")
        token, tag = find_token(self.api), self.tag
        if create_pr and tag is not None:
            print(f"A pull request is not a release, so tag {tag} is not set")
            tag = None
        with _one_message(f"Publishing {self.repo_id!r}", token):
            if not create_pr and not self.api.repo_exists(**self._where):
                sdk = "gradio" if self.repo_type == "space" else None
                self.api.create_repo(private=private, exist_ok=True, space_sdk=sdk, **self._where)
            is_private = self.api.repo_info(**self._where).private
            if private and not is_private:
                raise Ham10000Error(
                    f"{self.repo_id!r} exists and is public, but a private release was asked for; nothing was "
                    "uploaded. Make it private in its settings on the Hub, or publish under another name."
                )
            if is_private and not private:
                print(f"{self.repo_id} is private, and stays so")
            return self._publish(files, tag, commit_message, create_pr)

    def _refs(self) -> tuple[dict[str, str], ...]:
        """The commits of the branches, and those of the tags, by name."""
        refs = self.api.list_repo_refs(**self._where)
        return tuple({ref.name: ref.target_commit for ref in found} for found in (refs.branches, refs.tags))

    def _publish(self, files: dict[str, Path], tag: str | None, commit_message: str, create_pr: bool) -> Published:
        api, where, repo_id, revision = self.api, self._where, self.repo_id, self.revision
        branches, tags = self._refs()
        for name, others, kind in ((tag, branches, "branch"), (revision, tags, "tag")):
            if name in others:
                raise Ham10000Error(f"{repo_id!r} has a {kind} named {name!r} already; choose another name.")
        path = f"spaces/{repo_id}" if self.repo_type == "space" else f"{repo_id}/tree/{tag or revision}"
        page = f"{api.endpoint}/{path}"
        if tag in tags:
            if any(self._compare(files, tags[tag])):
                raise Ham10000Error(
                    f"{repo_id!r} has a release {tag!r} with other files (commit {tags[tag][:10]}); nothing was "
                    "uploaded. A release never changes: give this one a new tag."
                )
            print(f"Release {tag} of {repo_id} has these files already; nothing to do")
            return Published(page, tags[tag])

        commit = branches.get(revision) or branches["main"]
        if revision not in branches:
            api.create_branch(branch=revision, revision=commit, **where)
        uploads, deletions = self._compare(files, commit)
        if uploads or deletions:
            if create_pr and (proposed := self._find_pull_request(files, commit_message)):
                return proposed
            count = f"{len(uploads)} of {len(files)}"
            print(f"Uploading {count} files to {repo_id}, deleting {len(deletions)}", flush=True)
            removed: list[Add | Delete] = [Delete(path, is_folder=False) for path in deletions]
            info = api.create_commit(
                operations=[*removed, *(Add(path, files[path]) for path in uploads)],
                commit_message=commit_message,
                revision=revision,
                parent_commit=commit,  # the Hub refuses the commit if somebody else pushed in the meantime
                create_pr=create_pr,
                **where,
            )
            commit, page = info.oid, info.pr_url or page
            print(f"Committed {commit[:10]} to {'a pull request' if create_pr else revision}")
        # The Hub silently leaves out files that the repository's .gitignore names.
        if missing := () if create_pr else self._compare(files, commit)[0]:
            raise Ham10000Error(
                f"Commit {commit[:10]} of {repo_id!r} lacks {', '.join(missing)}, so it was not tagged. The "
                "repository's .gitignore names them: take them out of it and run the same command again."
            )
        if tag:
            api.create_tag(tag=tag, revision=commit, **where)
            print(f"Tagged {tag}")
        return Published(page, commit, uploads, deletions)

    def _find_pull_request(self, files: dict[str, Path], title: str) -> Published | None:
        """An open pull request of that title with these files: one whose answer was lost, perhaps."""
        pulls = self.api.get_repo_discussions(discussion_type="pull_request", discussion_status="open", **self._where)
        for pull in pulls:
            reference = f"refs/pr/{pull.num}"
            if pull.title == title and not any(self._compare(files, reference)):
                print(f"Pull request {pull.num} of {self.repo_id} has these files already; nothing to do")
                return Published(pull.url, self.api.repo_info(revision=reference, **self._where).sha or "")
        return None

    def _compare(self, files: dict[str, Path], commit: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The paths that a commit on top of `commit` must upload, and those it must delete."""
        tree = self.api.list_repo_tree(recursive=True, revision=commit, **self._where)
        remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        uploads = [path for path, file in files.items() if path not in remote or not _has_content(file, remote[path])]
        deletions = [path for path in remote if path not in files and is_owned(path, self.repo_type)]
        return tuple(uploads), tuple(deletions)
