"""Publishing with the real client against a Hub over loopback: what arrives, and what is left when it does not."""

import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hub_server import READER, STRANGER, WRITER, HubServer
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import _http
from PIL import Image
from safetensors.numpy import save_file

from ham10000.hub_upload import hub_client
from ham10000.hub_upload.hub_client import find_token, redact
from ham10000.hub_upload.hub_repository import is_owned
from ham10000.hub_upload.publish import Published, check_names, next_tag, publish_folder
from ham10000.modeling import Ham10000Error

REPO = "user/ham10000-fusion"
CARD = "---\nlicense: cc-by-nc-4.0\nlibrary_name: transformers\n---\n\n# A card\n"
NOTHING = "Nothing was changed on the Hub."
REMOVED = "The repository created for it was removed again, so the Hub is as it was."
AGAIN = "run the same command again"


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's pauses between its attempts, in seconds; none of them is waited for."""
    pauses: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]) -> Iterator[HubServer]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # this Hub has the basic LFS transfer only
    with HubServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release: two shards of weights, 1 MB together, and small files of all kinds."""
    return write_release(tmp_path / "release", seed=0, shards=2)


def write_release(folder: Path, seed: int, shards: int) -> Path:
    random = np.random.default_rng(seed)
    (folder / "figures").mkdir(parents=True)
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({"weight": random.standard_normal((260_000 // shards,), dtype=np.float32)}, folder / name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "config.json").write_text(f'{{"model_type": "ham10000", "seed": {seed}}}\n')
    (folder / "modeling_ham10000.py").write_text("# code\n")
    (folder / "README.md").write_text(CARD)
    Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / "figures" / "confusion.png")
    (folder / "empty.txt").write_text("")
    return folder


def publish(hub: HubServer, folder: Path, repo_id: str = REPO, token: Any = WRITER, **options: Any) -> Published:
    api = HfApi(endpoint=hub.url, token=token)
    return publish_folder(folder, repo_id, api=api, **{"commit_message": "Publish", **options})


def refusal(call: Callable[[], Any]) -> str:
    """The message of the one error a call must end with."""
    with pytest.raises(Ham10000Error) as caught:
        call()
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def download(hub: HubServer, target: Path, revision: str, token: Any = WRITER) -> dict[str, bytes]:
    """What a stranger gets, with the client's own download; without the file every repository starts with."""
    local = snapshot_download(REPO, revision=revision, endpoint=hub.url, token=token, cache_dir=target / revision)
    return {path: content for path, content in contents(Path(local)).items() if path != ".gitattributes"}


def refs(hub: HubServer) -> dict[str, str]:
    return hub.state.snapshot()[REPO]["refs"]


def others_commit(hub: HubServer, **files: str) -> Callable[[], None]:
    """Somebody else's commit to main, with a client of their own."""

    def commit() -> None:
        repo = hub.state.repo(REPO, "user")
        entries = {name.replace("__", "."): repo.store_blob(text.encode()) for name, text in files.items()}
        head = repo.refs["refs/heads/main"]
        repo.commit("refs/heads/main", "by hand", {**repo.files(head), **entries}, parent=head)

    return commit


def test_first_push_arrives_byte_for_byte(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    published = publish(hub, folder, log=lines.append)
    assert published.created
    assert not published.unchanged
    assert published.url == f"{hub.url}/{REPO}/tree/v1.0"
    assert published.uploaded == tuple(contents(folder))
    assert refs(hub) == {"refs/heads/main": published.commit, "refs/tags/v1.0": published.commit}
    assert hub.count("POST .*/commit/") == 1
    for revision in ("v1.0", "main", published.commit):
        assert download(hub, tmp_path, revision, token=False) == contents(folder)
    assert lines == [
        f"Created public repository {REPO}",
        f"Uploading 8 of 8 files (1.0 MB) to {REPO}, deleting 0 of an earlier release",
        f"Committed {published.commit[:10]} to main",
        "Tagged v1.0",
    ]


def test_second_push_uploads_nothing(hub: HubServer, folder: Path) -> None:
    first = publish(hub, folder)
    before, sent = hub.state.snapshot(), hub.uploaded_bytes()
    again = publish(hub, folder)
    assert again.unchanged
    assert (again.commit, again.tag, again.created) == (first.commit, "v1.0", False)
    assert hub.state.snapshot() == before
    assert hub.uploaded_bytes() == sent > 1_000_000
    assert publish(hub, folder, tag=None).unchanged
    assert hub.state.snapshot() == before


def test_same_files_under_a_new_tag_make_a_tag_and_no_commit(hub: HubServer, folder: Path) -> None:
    first = publish(hub, folder)
    assert publish(hub, folder, tag="v1.1").commit == first.commit
    assert refs(hub)["refs/tags/v1.1"] == first.commit
    assert hub.count("POST .*/commit/") == 1


def test_next_release_replaces_what_it_owns_and_keeps_the_rest(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    first = publish(hub, folder)
    others_commit(hub, notes__txt="mine", helper__py="mine", shard__bin="mine")()
    second_folder = write_release(tmp_path / "second", seed=1, shards=1)
    (second_folder / "figures" / "confusion.png").unlink()
    second = publish(hub, second_folder, tag="v1.1")
    assert second.deleted == (
        "figures/confusion.png",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    )
    assert second.uploaded == ("config.json", "model.safetensors")  # unchanged files stay where they are
    foreign = dict.fromkeys(("notes.txt", "helper.py", "shard.bin"), b"mine")
    assert download(hub, tmp_path, "v1.1") == contents(second_folder) | foreign
    assert download(hub, tmp_path, "v1.0") == contents(folder)
    assert refs(hub)["refs/tags/v1.0"] == first.commit


def test_a_release_never_changes(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    publish(hub, folder)
    publish(hub, folder, tag="v1.1")
    other = write_release(tmp_path / "second", seed=1, shards=2)
    before, requests = hub.state.snapshot(), len(hub.requests)
    message = refusal(lambda: publish(hub, other))
    assert "has a release 'v1.0' with other files" in message
    assert "such as 'v1.2'" in message
    assert hub.state.snapshot() == before
    assert {request.method for request in hub.requests[requests:]} == {"GET"}


def test_an_old_release_pushed_again_does_not_revert_the_branch(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    publish(hub, folder)
    second = publish(hub, write_release(tmp_path / "second", seed=1, shards=1), tag="v1.1")
    lines: list[str] = []
    assert publish(hub, folder, log=lines.append).unchanged
    assert refs(hub)["refs/heads/main"] == second.commit
    assert lines[-1] == "Branch main was changed after that release, and was left alone"


def test_private_repository(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    publish(hub, folder, private=True)
    assert hub.state.snapshot()[REPO]["private"]
    assert download(hub, tmp_path, "v1.0") == contents(folder)
    with pytest.raises(Exception, match="401"):
        download(hub, tmp_path / "anonymous", "v1.0", token=False)
    before = hub.state.snapshot()
    for token in (STRANGER, READER):
        message = refusal(lambda token=token: publish(hub, folder, token=token, tag="v2"))
        assert "the Hub answered 403 Forbidden" in message
        assert "take a token with write access" in message
    wrong = refusal(lambda: publish(hub, folder, token="hf_AnotherTokenThatNobodyKnows"))
    assert "the Hub answered 401 Unauthorized (Invalid credentials in Authorization header" in wrong
    assert "hf_A" not in wrong
    assert hub.state.snapshot() == before
    lines: list[str] = []
    publish(hub, folder, tag="v1.1", log=lines.append)
    assert lines[0] == f"{REPO} is private, and stays so"
    assert hub.state.snapshot()[REPO]["private"]


def test_a_private_release_never_goes_to_a_public_repository(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    publish(hub, folder)
    before, sent = hub.state.snapshot(), hub.uploaded_bytes()
    other = write_release(tmp_path / "second", seed=1, shards=1)
    message = refusal(lambda: publish(hub, other, tag="v1.1", private=True))
    assert "exists and is public" in message
    assert hub.state.snapshot() == before
    assert hub.uploaded_bytes() == sent


def test_without_a_token_nothing_is_asked(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in (None, False, ""):
        assert "log in with `hf auth login`, or set HF_TOKEN" in refusal(lambda t=token: publish(hub, folder, token=t))
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert find_token(HfApi()) == WRITER
    assert publish(hub, folder, token=None).created


def test_pull_request_leaves_main_alone(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    missing = refusal(lambda: publish(hub, folder, create_pr=True))
    assert f"There is no repository {REPO!r} to open a pull request in" in missing
    assert hub.state.snapshot() == {}
    first = publish(hub, folder)
    other = write_release(tmp_path / "second", seed=1, shards=1)
    lines: list[str] = []
    proposed = publish(hub, other, token=STRANGER, create_pr=True, log=lines.append)
    assert proposed.pull_request_url == proposed.url == f"{hub.url}/{REPO}/discussions/1"
    assert proposed.tag is None
    assert lines[0] == "A pull request is no release, so tag v1.0 is not set"
    main = {"refs/heads/main": first.commit, "refs/tags/v1.0": first.commit}
    assert refs(hub) == main | {"refs/pr/1": proposed.commit}
    assert download(hub, tmp_path, "refs/pr/1") == contents(other)
    assert publish(hub, folder, create_pr=True).pull_request_url is None  # main has these files


def test_branch_is_made_from_main(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    first = publish(hub, folder)
    other = write_release(tmp_path / "second", seed=1, shards=1)
    second = publish(hub, other, tag="v2.0", revision="next")
    assert refs(hub) == {
        "refs/heads/main": first.commit,
        "refs/tags/v1.0": first.commit,
        "refs/heads/next": second.commit,
        "refs/tags/v2.0": second.commit,
    }
    assert download(hub, tmp_path, "next") == contents(other)
    assert "has a tag named 'v1.0'" in refusal(lambda: publish(hub, other, tag="v3", revision="v1.0"))
    assert "has a branch named 'next'" in refusal(lambda: publish(hub, other, tag="next"))


def test_concurrent_push_is_refused_and_not_overwritten(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    publish(hub, folder)
    other = write_release(tmp_path / "second", seed=1, shards=2)
    hub.fail("POST .*/commit/", before=others_commit(hub, config__json="theirs"))
    message = refusal(lambda: publish(hub, other, tag="v1.1"))
    assert "412" in message
    assert "Somebody else pushed in the meantime" in message
    assert NOTHING in message
    assert "refs/tags/v1.1" not in refs(hub)
    assert download(hub, tmp_path, "main")["config.json"] == b"theirs"
    publish(hub, other, tag="v1.1")
    assert download(hub, tmp_path, "v1.1") == contents(other)


# name -> the fault as a call of `hub.fail`; what the message must say; whether the Hub can still be asked afterwards
FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "401 commit": ({"match": "POST .*/commit/", "status": 401}, ("401", "log in with `hf auth login`"), True),
    "403 preupload": ({"match": "POST .*/preupload/", "status": 403}, ("403", "a token with write access"), True),
    "404 commit": ({"match": "POST .*/commit/", "status": 404}, ("404", "check the repository id"), True),
    "409 commit": ({"match": "POST .*/commit/", "status": 409}, ("409", "wait a minute"), True),
    "413 commit": ({"match": "POST .*/commit/", "status": 413}, ("413", "smaller shards"), True),
    "413 weights": (
        {"match": "PUT /lfs/", "status": 413, "times": 99},
        ("413", "smaller shards", "Error while uploading 'model-0000"),
        True,
    ),
    "429 commit": (
        {"match": "POST .*/commit/", "status": 429, "headers": {"Retry-After": "17"}},
        ("429", "wait 17 seconds"),
        True,
    ),
    "429 for long": (
        {"match": "POST .*/preupload/", "status": 429, "headers": {"Retry-After": "3600"}, "times": 99},
        ("429", "wait 3600 seconds"),
        True,
    ),
    "429 again and again": (
        {"match": "POST .*/objects/batch", "status": 429, "headers": {"Retry-After": "5"}, "times": 99},
        ("429", "wait 5 seconds"),
        True,
    ),
    "500 commit": ({"match": "POST .*/commit/", "status": 500}, ("500", "a fault of the Hub"), True),
    "503 weights": ({"match": "PUT /lfs/", "status": 503, "times": 99}, ("503", "a fault of the Hub"), True),
    "cut in the weights": (
        {"match": "PUT /lfs/", "cut_after": 300_000, "times": 99},
        ("the connection broke", "Check the network"),
        True,
    ),
    "killed in the weights": ({"match": "PUT /lfs/", "kill": True}, ("Check the network",), False),
    "killed before the commit": (
        {"match": "POST .*/commit/", "kill": True},
        ("Whether the commit arrived cannot be told", "Check the network"),
        False,
    ),
}


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("name", FAULTS)
def test_fault(
    name: str,
    existing: bool,
    hub: HubServer,
    folder: Path,
    tmp_path: Path,
    sleeps: list[float],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One message with the right advice, the Hub as before, no token anywhere, and the rerun completes."""
    fault, words, alive = FAULTS[name]
    if existing:
        publish(hub, write_release(tmp_path / "first", seed=1, shards=1), tag="v0.9")
    before = hub.state.snapshot()
    hub.fail(**fault)
    caplog.set_level(logging.DEBUG)
    library = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(library, "handlers", [caplog.handler])
    monkeypatch.setattr(library, "level", logging.DEBUG)
    monkeypatch.setattr(constants, "HF_DEBUG", True)  # the client logs every request as a curl command

    with pytest.raises(Ham10000Error) as caught:
        publish(hub, folder)
    message = str(caught.value)
    assert message.startswith(f"Publishing failed for {REPO!r}: ")
    assert "\n" not in message
    for word in (*words, AGAIN):
        assert word in message
    assert sum(sleeps) <= 130  # seconds the client would have waited
    if alive:
        assert (NOTHING in message or "The commit did not arrive" in message) if existing else REMOVED in message
        assert hub.state.snapshot() == before
    else:
        assert message.count(NOTHING) == (1 if existing and "weights" in name else 0)
        hub.start()
        assert hub.state.snapshot() == before if existing else list(refs(hub)) == ["refs/heads/main"]

    output = capfd.readouterr()
    shown = (message, caplog.text, output.out, output.err, "".join(traceback.format_exception(caught.value)))
    assert "authenticated: True" in caplog.text  # the log was there to look at
    assert not any(WRITER in text for text in shown)
    assert not any(re.search(r"hf_[A-Z]", text) for text in shown)

    hub.faults.clear()
    sent = hub.uploaded_bytes()
    published = publish(hub, folder)
    assert download(hub, tmp_path, "v1.0") == contents(folder)
    assert refs(hub)["refs/heads/main"] == refs(hub)["refs/tags/v1.0"] == published.commit
    if existing and name.endswith("commit"):
        assert hub.uploaded_bytes() - sent < 100_000  # the weights had arrived, and are not sent twice


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("GET /api/models/user/ham10000-fusion$", NOTHING),
        ("GET .*/refs", NOTHING),
        ("POST /api/repos/create", NOTHING),
        ("POST /api/validate-yaml", REMOVED),
    ],
)
@pytest.mark.parametrize("status", [401, 403, 500])
def test_fault_on_the_way_to_a_new_repository(
    match: str, words: str, status: int, hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    if "refs" in match:
        publish(hub, write_release(tmp_path / "first", seed=1, shards=1), tag="v0.9")
    before = hub.state.snapshot()
    hub.fail(match, status=status)
    message = refusal(lambda: publish(hub, folder))
    assert f"the Hub answered {status}" in message
    assert words in message
    assert hub.state.snapshot() == before
    publish(hub, folder)
    assert download(hub, tmp_path, "v1.0") == contents(folder)


def test_one_lost_connection_is_bridged_by_the_client(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.fail("PUT /lfs/", cut_after=300_000)
    publish(hub, folder)
    assert download(hub, tmp_path, "v1.0") == contents(folder)


def test_a_commit_whose_answer_is_lost_is_found(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.fail("POST .*/commit/", lose_answer=True)
    lines: list[str] = []
    published = publish(hub, folder, log=lines.append)
    assert "The Hub's answer to the commit was lost, but the commit has arrived" in lines
    assert refs(hub) == {"refs/heads/main": published.commit, "refs/tags/v1.0": published.commit}
    hub.fail("POST .*/commit/", lose_answer=True)
    proposed = publish(hub, write_release(tmp_path / "second", seed=1, shards=1), create_pr=True)
    assert proposed.pull_request_url == f"{hub.url}/{REPO}/discussions/1"
    assert refs(hub)["refs/pr/1"] == proposed.commit


def test_a_repository_that_may_not_be_ours_is_not_removed(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    hub.fail("POST /api/repos/create", lose_answer=True)
    message = refusal(lambda: publish(hub, folder))
    assert "The repository may be on the Hub now, without this release in it; running again uses it." in message
    assert list(refs(hub)) == ["refs/heads/main"]
    publish(hub, folder)
    assert download(hub, tmp_path, "v1.0") == contents(folder)


def test_a_new_repository_that_somebody_used_is_not_removed(hub: HubServer, folder: Path) -> None:
    hub.fail("POST .*/commit/", before=others_commit(hub, theirs__txt="theirs"))
    assert "412" in refusal(lambda: publish(hub, folder))
    repo = hub.state.repo(REPO, "user")
    assert "theirs.txt" in repo.files(repo.resolve("main"))


def test_a_new_branch_is_removed_again(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    publish(hub, folder)
    before = hub.state.snapshot()
    hub.fail("POST .*/commit/", status=403)
    other = write_release(tmp_path / "second", seed=1, shards=1)
    message = refusal(lambda: publish(hub, other, tag="v2", revision="next"))
    assert "The branch 'next' created for it was removed again, so the Hub is as it was." in message
    assert hub.state.snapshot() == before


@pytest.mark.parametrize("fault", [{"status": 500}, {"lose_answer": True}, {"kill": True}])
def test_a_rerun_sets_the_tag_that_is_missing(fault: dict[str, Any], hub: HubServer, folder: Path) -> None:
    hub.fail("POST .*/tag/", **fault)
    message = refusal(lambda: publish(hub, folder))
    assert "Completing release v1.0 failed" in message
    assert "is on the Hub; only its tag may be missing." in message
    if hub.http is None:
        hub.start()
    commit, sent = refs(hub)["refs/heads/main"], hub.uploaded_bytes()
    assert publish(hub, folder).unchanged
    assert refs(hub) == {"refs/heads/main": commit, "refs/tags/v1.0": commit}
    assert hub.uploaded_bytes() == sent


def test_interrupted_by_the_user(hub: HubServer, folder: Path) -> None:
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.startswith("Uploading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(hub, folder, log=log)
    assert lines[-1] == REMOVED
    assert hub.state.snapshot() == {}


def test_endless_conflict_ends(hub: HubServer, folder: Path) -> None:
    """The client repeats this one answer without a pause and without an end."""
    busy = "Cannot create repo: another conflicting operation is in progress"
    hub.fail("POST /api/repos/create", status=409, message=busy, times=10_000)
    message = refusal(lambda: publish(hub, folder))
    assert "409" in message
    assert NOTHING in message
    assert hub.count("POST /api/repos/create") == 10


def test_a_silent_hub_is_not_waited_for_for_ever(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT", hub_client.httpx2.Timeout(0.2))
    hub.fail("GET .*/refs", before=lambda: time.sleep(1))
    publish_first = refusal(lambda: publish(hub, prepared(hub, folder)))
    assert "the Hub did not answer in time" in publish_first
    assert NOTHING in publish_first


def prepared(hub: HubServer, folder: Path) -> Path:
    hub.state.create(REPO, private=False)
    return folder


def test_no_hub_at_all(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.kill()
    message = refusal(lambda: publish(hub, folder))
    assert "no connection to the Hub" in message
    assert NOTHING in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(lambda: publish(hub, folder))


def test_a_card_the_hub_refuses(hub: HubServer, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    message = refusal(lambda: publish(hub, folder))
    assert "Invalid metadata in README.md: the Hub answered 400" in message
    assert hub.uploaded_bytes() == 0
    assert hub.state.snapshot() == {}


def test_a_login_page_in_between(hub: HubServer, folder: Path) -> None:
    hub.fail("GET /api/models/", status=200, html=True)
    message = refusal(lambda: publish(hub, folder))
    assert "the Hub's answer (status 200) is not JSON" in message
    assert NOTHING in message


def test_files_the_repository_ignores_are_missed(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """The Hub leaves files out of a commit, without a word, that the repository's .gitignore names."""
    prepared(hub, folder)
    others_commit(hub, __gitignore="*.png *.txt")()
    message = refusal(lambda: publish(hub, folder))
    assert "lacks empty.txt, figures/confusion.png, so it was not tagged" in message
    assert "refs/tags/v1.0" not in refs(hub)


@pytest.mark.parametrize(("status", "advice"), [(401, "log in with `hf auth login`"), (403, "write access")])
def test_xet_failure_is_one_message_too(
    status: int,
    advice: str,
    hub: HubServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """Large files go through hf_xet where it is installed, which has an HTTP client of its own."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.fail("GET .*/xet-write-token/", status=status)
    with pytest.raises(Ham10000Error) as caught:
        publish(hub, folder)
    message = str(caught.value)
    assert hub.count("GET .*/xet-write-token/") == 1
    assert f"({status} " in message
    assert advice in message
    assert REMOVED in message
    assert hub.state.snapshot() == {}
    output = capfd.readouterr()
    assert WRITER not in message + output.out + output.err + "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "repo_id",
    ["ham10000", "a/b/c", "user/", "/name", "user/na me", "user/x--y", "user/x.git", "https://hf.co/user/x", ""],
)
def test_repo_id_form(repo_id: str, hub: HubServer, folder: Path) -> None:
    assert "Expected 'user/name'" in refusal(lambda: publish(hub, folder, repo_id=repo_id))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"tag": "v 1"}, "tag 'v 1'"),
        ({"tag": "-v1"}, "tag '-v1'"),
        ({"tag": "v1..2"}, "tag 'v1..2'"),
        ({"tag": "a/b"}, "tag 'a/b'"),
        ({"tag": ""}, "tag ''"),
        ({"tag": "v1.lock"}, "tag 'v1.lock'"),
        ({"tag": "main"}, "both named 'main'"),
        ({"revision": "refs/pr/1"}, "revision 'refs/pr/1'"),
        ({"revision": "a//b"}, "revision 'a//b'"),
    ],
)
def test_name_form(names: dict[str, str], words: str) -> None:
    assert words in refusal(lambda: check_names(REPO, **{"tag": "v1.0", "revision": "main", **names}))
    check_names(REPO, tag="v1.0", revision="feature/x")
    check_names(REPO, tag=None, revision="main")


def test_other_bad_input(hub: HubServer, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no files" in refusal(lambda: publish(hub, tmp_path / "empty"))
    assert "commit message is empty" in refusal(lambda: publish(hub, folder, commit_message=" "))
    assert "against main" in refusal(lambda: publish(hub, folder, create_pr=True, revision="next"))
    assert hub.requests == []


def test_next_tag() -> None:
    assert next_tag("v1.0", {"v1.0"}) == "v1.1"
    assert next_tag("v1.9", {"v1.9", "v1.10"}) == "v1.11"
    assert next_tag("final", {"final"}) == "final.1"


def test_what_a_release_owns() -> None:
    owned = ("model.safetensors", "model-00001-of-00002.safetensors", "fusion_ham10000.py", "figures/a.png")
    foreign = ("README.md", "adapter/x.safetensors", "notes.txt", "my_figures/a.png", ".gitattributes", "sub/onnx/x")
    assert all(is_owned(path) for path in owned)
    assert not any(is_owned(path) for path in foreign)


def test_redact() -> None:
    assert redact(f"x {WRITER}, Bearer abc.def", WRITER) == "x ***, Bearer ***"
    assert redact("hf_AbCdEfGh12345678 and secret", "secret") == "hf_*** and ***"
    assert redact("hf_hub_download failed", None) == "hf_hub_download failed"


@pytest.mark.parametrize(
    "words",
    [
        "Cannot send a request, as the client has been closed.",
        "'NoneType' object has no attribute 'request'",
    ],
)
def test_a_client_that_another_upload_closed_is_a_broken_connection(words: str) -> None:
    try:
        try:
            raise AttributeError(words)
        except AttributeError as error:
            raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from error
    except RuntimeError as error:
        failure = hub_client.explain(error, None, hub_client.Traffic())
    assert failure.what.startswith("Error while uploading 'model.safetensors' to the Hub: the connection broke (")
    assert failure.advice.startswith("Check the network")
    assert failure.uncertain
