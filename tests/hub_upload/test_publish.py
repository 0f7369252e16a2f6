"""Publishing with the real client against a Hub over loopback: what arrives, and what is left when it does not."""

import logging
import re
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from hub_server import READER, STRANGER, WRITER, HubServer, Repo
from huggingface_hub import HfApi, constants, get_session, set_client_factory, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http

from ham10000.hub_upload import publish as publish_module
from ham10000.hub_upload.publish import Published, Release, check_names, explain, is_owned, redact, seal_card
from ham10000.modeling import Ham10000Error

REPO = "user/ham10000-fusion"
CARD = "---\nlicense: cc-by-nc-4.0\nlibrary_name: transformers\n---\n\n# A card\n"
SEALED = seal_card(CARD)
AGAIN = "run the same command again"
COMMIT, TAG, WEIGHTS = "POST .*/commit/", "POST .*/tag/", "PUT /lfs/"


def write_release(folder: Path, seed: int, shards: int) -> Path:
    """Weights, 1 MB together, and small files of all kinds."""
    random = np.random.default_rng(seed)
    texts = {"config.json": f'{{"seed": {seed}}}\n', "modeling_ham10000.py": "# code\n", "empty.txt": ""}
    texts |= {"README.md": SEALED} | ({"model.safetensors.index.json": "{}"} if shards > 1 else {})
    names = [f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" for shard in range(shards)]
    files = {name: random.bytes(1_040_000 // shards) for name in (names if shards > 1 else ["model.safetensors"])}
    files |= {"figures/per_class.png": bytes(range(256))} | {name: text.encode() for name, text in texts.items()}
    (folder / "figures").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release", seed=0, shards=2)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_release(tmp_path / "other", seed=1, shards=1)


def release(hub: HubServer, repo_id: str = REPO, token: Any = WRITER, **names: Any) -> Release:
    return Release(HfApi(endpoint=hub.url, token=token), repo_id, **names)


def publish(hub: HubServer, folder: Path, **options: Any) -> Published:
    """With options of `Release.publish`, and of `release`."""
    how = {name: options.pop(name) for name in ("commit_message", "private", "create_pr") if name in options}
    return release(hub, **options).publish(folder, **({"commit_message": "Publish"} | how))


def refusal(call: Callable[..., Any], *given: Any, **options: Any) -> str:
    """The message of the one error a call must end with."""
    with pytest.raises(Ham10000Error) as caught:
        call(*given, **options)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def download(hub: HubServer, target: Path, revision: str, token: Any = WRITER) -> dict[str, bytes]:
    """What a stranger gets, with the client's own download; without the file every repository starts with."""
    local = snapshot_download(REPO, revision=revision, endpoint=hub.url, token=token, cache_dir=target / revision)
    return {path: content for path, content in contents(Path(local)).items() if path != ".gitattributes"}


def refs(hub: HubServer) -> dict[str, str]:
    return dict(hub.repos[REPO].refs)


def others_commit(hub: HubServer, **files: str) -> Callable[[], None]:
    """Somebody else's commit to main, with a client of their own."""

    def commit() -> None:
        repo = hub.repos[REPO]
        entries = {name.replace("__", "."): repo.store_blob(text.encode()) for name, text in files.items()}
        repo.commit("refs/heads/main", "by hand", repo.files("main") | entries)

    return commit


def test_first_push_arrives_byte_for_byte(hub: HubServer, folder: Path, tmp_path: Path, capsys) -> None:
    """And the same files again make no commit."""
    first = publish(hub, folder)
    assert first == Published(f"{hub.url}/{REPO}/tree/v1.0", first.commit, tuple(contents(folder)))
    assert refs(hub) == {"refs/heads/main": first.commit, "refs/tags/v1.0": first.commit}
    for revision in ("v1.0", "main", first.commit):
        assert download(hub, tmp_path, revision, token=False) == contents(folder)
    upload, commit = f"Uploading 8 of 8 files to {REPO}, deleting 0", f"Committed {first.commit[:10]} to main"
    assert capsys.readouterr().out.splitlines() == [upload, commit, "Tagged v1.0"]
    before, sent = hub.snapshot(), hub.uploaded_bytes
    for tag in ("v1.0", None):
        assert publish(hub, folder, tag=tag) == Published(first.url.replace("v1.0", tag or "main"), first.commit)
        assert hub.snapshot() == before
    assert publish(hub, folder, tag="v1.1").commit == first.commit
    assert refs(hub)["refs/tags/v1.1"] == first.commit
    assert hub.uploaded_bytes == sent > 1_000_000
    assert hub.count(COMMIT) == 1


def test_next_release_replaces_only_what_it_owns(hub: HubServer, folder: Path, other: Path, tmp_path: Path) -> None:
    first = publish(hub, folder)
    others_commit(hub, notes__txt="mine", helper__py="mine", shard__bin="mine")()
    (other / "figures" / "per_class.png").unlink()
    second = publish(hub, other, tag="v1.1")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert second.deleted == ("figures/per_class.png", *shards, "model.safetensors.index.json")
    assert second.uploaded == ("config.json", "model.safetensors")  # unchanged files stay where they are
    foreign = dict.fromkeys(("notes.txt", "helper.py", "shard.bin"), b"mine")
    assert download(hub, tmp_path, "v1.1") == contents(other) | foreign
    assert download(hub, tmp_path, "v1.0") == contents(folder)
    assert refs(hub)["refs/tags/v1.0"] == first.commit
    # The old release pushed again does not revert the branch.
    assert publish(hub, folder).commit == first.commit
    assert refs(hub)["refs/heads/main"] == second.commit


def test_a_release_never_changes(hub: HubServer, folder: Path, other: Path) -> None:
    publish(hub, folder)
    before, sent = hub.snapshot(), hub.uploaded_bytes
    assert "has a release 'v1.0' with other files" in refusal(publish, hub, other)
    assert "exists and is public" in refusal(publish, hub, other, tag="v1.1", private=True)
    assert hub.snapshot() == before
    assert hub.uploaded_bytes == sent


def test_private_repository(hub: HubServer, folder: Path, tmp_path: Path, capsys) -> None:
    publish(hub, folder, private=True)
    assert hub.snapshot()[REPO]["private"]
    assert download(hub, tmp_path, "v1.0") == contents(folder)
    with pytest.raises(Exception, match="401"):
        download(hub, tmp_path / "anonymous", "v1.0", token=False)
    before = hub.snapshot()
    for token in (STRANGER, READER):
        message = refusal(publish, hub, folder, token=token, tag="v2")
        assert re.search("the Hub answered 403 Forbidden.*take a token with write access", message)
    wrong = refusal(publish, hub, folder, token="hf_AnotherTokenThatNobodyKnows")
    assert "the Hub answered 401 Unauthorized (Invalid credentials in Authorization header" in wrong
    assert "hf_A" not in wrong
    assert hub.snapshot() == before
    capsys.readouterr()
    publish(hub, folder, tag="v1.1")
    assert capsys.readouterr().out.startswith(f"{REPO} is private, and stays so\n")
    assert hub.snapshot()[REPO]["private"]


def test_without_a_token_nothing_is_asked(hub: HubServer, folder: Path, monkeypatch) -> None:
    for token in (None, False, ""):
        assert "log in with `hf auth login`, or set HF_TOKEN" in refusal(publish, hub, folder, token=token)
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert publish_module.find_token(HfApi()) == WRITER
    assert publish(hub, folder, token=None).uploaded


def test_pull_request_leaves_main_alone(hub: HubServer, folder: Path, other: Path, tmp_path: Path, capsys) -> None:
    assert "404" in refusal(publish, hub, folder, create_pr=True)  # there is no repository
    assert hub.snapshot() == {}
    first = publish(hub, folder)
    capsys.readouterr()
    proposed = publish(hub, other, token=STRANGER, create_pr=True)
    assert proposed.url == f"{hub.url}/{REPO}/discussions/1"
    assert capsys.readouterr().out.startswith("A pull request is not a release, so tag v1.0 is not set\n")
    main = {"refs/heads/main": first.commit, "refs/tags/v1.0": first.commit}
    assert refs(hub) == main | {"refs/pr/1": proposed.commit}
    assert download(hub, tmp_path, "refs/pr/1") == contents(other)
    assert not publish(hub, folder, create_pr=True).uploaded  # main has these files
    assert "refs/pr/2" not in refs(hub)


def test_a_lost_pull_request_is_found_again(hub: HubServer, folder: Path, other: Path, tmp_path: Path, capsys) -> None:
    publish(hub, folder)
    hub.fail(COMMIT, lose_answer=True)
    assert AGAIN in refusal(publish, hub, other, create_pr=True)
    assert publish(hub, other, create_pr=True) == Published(f"{hub.url}/{REPO}/discussions/1", refs(hub)["refs/pr/1"])
    assert "Pull request 1 of user/ham10000-fusion has these files already" in capsys.readouterr().out
    assert publish(hub, other, create_pr=True, commit_message="Another title").uploaded
    third = write_release(tmp_path / "third", seed=2, shards=1)
    assert publish(hub, third, create_pr=True).uploaded
    assert sorted(name for name in refs(hub) if name.startswith("refs/pr/")) == ["refs/pr/1", "refs/pr/2", "refs/pr/3"]


def test_a_hub_without_pull_requests_says_so(hub: HubServer, folder: Path, other: Path) -> None:
    """501 is permanent: no advice to try again, and nothing is left behind."""
    publish(hub, folder)
    before = hub.snapshot()
    hub.fail(COMMIT, status=501)
    message = refusal(publish, hub, other, create_pr=True)
    assert re.search("the Hub answered 501.*trying again will not help.*publish without --create_pr, to a", message)
    assert AGAIN not in message
    assert "rerun" not in message
    assert hub.snapshot() == before
    assert publish(hub, other, revision="next", tag=None).uploaded  # as it advises


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace("# A card", "# My card"),
        lambda card: card.replace("license: cc-by-nc-4.0", "license: mit"),
        lambda card: card + "\nMore.\n",
        lambda card: card.replace("\n", "\r\n"),
        lambda card: CARD,  # never sealed: of an earlier version, or the website's own
        lambda card: "",
    ],
)
def test_a_card_edited_on_the_hub_is_kept(edit: Callable[[str], str], hub: HubServer, folder: Path, capsys) -> None:
    publish(hub, folder)
    edited = edit(SEALED)
    others_commit(hub, README__md=edited)()
    (folder / "README.md").write_text(seal_card(CARD + "New numbers.\n"))
    (folder / "config.json").write_text("{}")
    assert release(hub, tag="v2.0").keep_edited_card(folder)
    assert "--replace_card" in capsys.readouterr().out
    assert publish(hub, folder, tag="v2.0").uploaded == ("config.json",)
    assert hub.repos[REPO].read("main", "README.md").decode() == edited
    # The same release again is complete, edited card and all; and so is the first, whose card nobody had edited.
    assert not publish(hub, folder, tag="v2.0").uploaded
    (folder / "README.md").write_text(SEALED)
    assert not release(hub, tag="v1.0").keep_edited_card(folder)


def test_a_card_nobody_has_edited_is_replaced(hub: HubServer, folder: Path) -> None:
    assert not release(hub).keep_edited_card(folder)  # there is no repository
    publish(hub, folder, tag=None)
    (folder / "README.md").write_text(seal_card(CARD + "New numbers.\n"))
    assert not release(hub).keep_edited_card(folder)
    assert publish(hub, folder, tag=None).uploaded == ("README.md",)


def test_a_hub_that_never_answers_is_given_up(hub: HubServer, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(publish_module, "_TIMEOUT", 0.2)
    plain = get_session().event_hooks["request"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish_module.limit_waiting()
        try:
            assert get_session().event_hooks["request"][: len(plain)] == plain  # the client's own hooks stay
            waiting = Release(HfApi(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", token=WRITER), REPO)
            publishing = refusal(lambda: waiting.publish(folder, commit_message="x"))
            for message in (publishing, refusal(lambda: waiting.keep_edited_card(folder))):
                assert re.search(rf"the Hub did not answer \(timed out\).*{AGAIN}", message)
        finally:
            set_client_factory(_http.default_client_factory)


def test_branch_is_made_from_main(hub: HubServer, folder: Path, other: Path, tmp_path: Path) -> None:
    first = publish(hub, folder)
    second = publish(hub, other, tag="v2.0", revision="next")
    old = {"refs/heads/main": first.commit, "refs/tags/v1.0": first.commit}
    assert refs(hub) == old | {"refs/heads/next": second.commit, "refs/tags/v2.0": second.commit}
    assert download(hub, tmp_path, "next") == contents(other)
    assert "has a tag named 'v1.0'" in refusal(publish, hub, other, tag="v3", revision="v1.0")
    assert "has a branch named 'next'" in refusal(publish, hub, other, tag="next")


def test_concurrent_push_overwrites_nothing(hub: HubServer, folder: Path, other: Path, tmp_path: Path) -> None:
    publish(hub, folder)
    hub.fail(COMMIT, before=others_commit(hub, config__json="theirs"))
    message = refusal(publish, hub, other, tag="v1.1")
    assert re.search("412.*Somebody else pushed in the meantime", message)
    assert "refs/tags/v1.1" not in refs(hub)
    assert download(hub, tmp_path, "main")["config.json"] == b"theirs"
    publish(hub, other, tag="v1.1")
    assert download(hub, tmp_path, "v1.1") == contents(other)


CREATE, INFO, BATCH = "POST /api/repos/create", f"GET /api/models/{REPO}$", "POST .*/objects/batch"
FAULT, NETWORK, MAY_NOT = "The Hub has a fault", "Check the network", "a token with write access"
# name -> the fault as a call of `hub.fail`; what the message must say besides the status
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "400 commit": ({"match": COMMIT, "status": 400}, "Correct what the Hub complains about"),
    "409 commit": ({"match": COMMIT, "status": 409}, "wait a minute"),
    "401 create": ({"match": CREATE, "status": 401}, "log in"),
    "500 info": ({"match": INFO, "status": 500}, FAULT),
    "403 refs": ({"match": "GET .*/refs", "status": 403}, MAY_NOT),
    "413 weights": ({"match": WEIGHTS, "status": 413, "times": 99}, "uploading 'model-0000"),
    "503 weights": ({"match": WEIGHTS, "status": 503, "times": 99}, FAULT),
    "429 batch": ({"match": BATCH, "status": 429, "headers": {"Retry-After": "5"}, "times": 99}, "limits the rate"),
    "cut weights": ({"match": WEIGHTS, "cut_after": 300_000, "times": 99}, "the Hub did not answer"),
    "killed weights": ({"match": WEIGHTS, "kill": True}, NETWORK),
    "killed commit": ({"match": COMMIT, "kill": True}, NETWORK),
    "lost create": ({"match": CREATE, "lose_answer": True}, NETWORK),
    "lost commit": ({"match": COMMIT, "lose_answer": True}, NETWORK),
    "500 tag": ({"match": TAG, "status": 500}, FAULT),
    "lost tag": ({"match": TAG, "lose_answer": True}, NETWORK),
    "killed tag": ({"match": TAG, "kill": True}, NETWORK),
    "html info": ({"match": INFO, "html": True}, "login page"),
}


@pytest.fixture
def all_shown(caplog, capfd, monkeypatch) -> Callable[[BaseException], str]:
    """What was printed and logged, the client's debug log included, and the traceback of an error."""
    caplog.set_level(logging.DEBUG)
    library = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(library, "handlers", [caplog.handler])
    monkeypatch.setattr(library, "level", logging.DEBUG)
    monkeypatch.setattr(constants, "HF_DEBUG", True)  # the client logs every request as a curl command
    return lambda error: "\n".join([caplog.text, *capfd.readouterr(), *traceback.format_exception(error)])


@pytest.mark.parametrize(
    ("name", "existing"),
    [(name, False) for name in FAULTS] + [(name, True) for name in ("409 commit", "lost commit", "killed weights")],
)
def test_fault(
    name: str, existing: bool, hub: HubServer, folder: Path, other: Path, tmp_path: Path, all_shown: Callable
) -> None:
    """One message with the right advice, nothing half published, no token anywhere, and the rerun completes."""
    fault, words = FAULTS[name]
    if existing:
        publish(hub, other, tag="v0.9")
    before = hub.snapshot()
    hub.fail(**fault)
    with pytest.raises(Ham10000Error) as caught:
        publish(hub, folder)
    message, shown = str(caught.value), all_shown(caught.value)
    assert message.startswith(f"Publishing {REPO!r} failed: ")
    assert "\n" not in message
    assert words in message
    assert "A commit arrives complete or not at all" in message
    assert AGAIN in message
    if name[0] in "45":
        assert f"the Hub answered {name[:3]} " in message
    assert message in shown
    assert "authenticated: True" in shown  # the log was there to look at
    assert not re.search(r"hf_[A-Z]", shown)  # as the tests' tokens begin

    if hub.http is None:
        hub.start()
    committed = name == "lost commit" or name.endswith("tag")
    if committed:
        assert download(hub, tmp_path, refs(hub)["refs/heads/main"]) == contents(folder)
    elif existing:
        assert hub.snapshot() == before
    elif repo := hub.repos.get(REPO):  # new and empty
        assert all(list(repo.files(ref)) == [".gitattributes"] for ref in repo.refs)
    sent = hub.uploaded_bytes
    hub.faults.clear()
    published = publish(hub, folder)
    assert bool(published.uploaded) != committed
    assert download(hub, tmp_path, "v1.0") == contents(folder)
    assert refs(hub)["refs/heads/main"] == refs(hub)["refs/tags/v1.0"] == published.commit
    if name.endswith(("commit", "tag")):
        assert hub.uploaded_bytes - sent < 100_000  # the weights had arrived, and are not sent twice


@pytest.mark.parametrize(
    ("status", "advice"),
    [(402, "co/pricing"), (404, "check the repository id"), (413, "smaller shards"), (502, "The Hub has a fault")],
)
def test_a_status_that_no_other_test_meets_has_its_advice(status: int, advice: str) -> None:
    error = HfHubHTTPError("x", response=httpx2.Response(status, request=httpx2.Request("POST", "http://hub/x")))
    message = explain(error, WRITER)
    assert re.search(f"the Hub answered {status} .*{advice}", message)
    assert (AGAIN in message) == (status != 402)


def test_offline_says_which_variable_to_unset(hub: HubServer, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset the `HF_HUB_OFFLINE` environment variable" in refusal(publish, hub, folder)


def test_a_card_the_hub_refuses(hub: HubServer, folder: Path) -> None:
    hub.fail("POST /api/validate-yaml", status=400)
    assert "Invalid metadata in README.md: the Hub answered 400" in refusal(publish, hub, folder)
    assert hub.uploaded_bytes == 0


def test_files_the_repository_ignores_are_missed(hub: HubServer, folder: Path) -> None:
    """The Hub leaves files out of a commit, without a word, that the repository's .gitignore names."""
    hub.repos[REPO] = Repo(private=False)
    others_commit(hub, __gitignore="*.png *.txt")()
    message = refusal(publish, hub, folder)
    assert "lacks empty.txt, figures/per_class.png, so it was not tagged" in message
    assert "refs/tags/v1.0" not in refs(hub)


@pytest.mark.parametrize(("status", "advice"), [(401, "log in with `hf auth login`"), (403, "write access")])
def test_xet_failure_has_advice(status: int, advice: str, hub: HubServer, folder: Path, monkeypatch, capfd) -> None:
    """Large files go through hf_xet where it is installed, which has an HTTP client of its own."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.fail("GET .*/xet-write-token/", status=status)
    with pytest.raises(Ham10000Error) as caught:
        publish(hub, folder)
    assert hub.count("GET .*/xet-write-token/") == 1
    assert re.search(rf"\({status} .*{advice}", str(caught.value))
    assert WRITER not in "".join([*capfd.readouterr(), *traceback.format_exception(caught.value)])


def test_a_folder_without_files_is_refused(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """Before the Hub is asked: every file of the release before it would be deleted."""
    publish(hub, folder)
    asked, missing, empty, git = len(hub.requests), *(tmp_path / name for name in ("missing", "empty", "git"))
    (empty / "figures").mkdir(parents=True)
    (git / ".git").mkdir(parents=True)
    (git / ".git" / "config").write_text("[core]")
    for bare in (missing, empty, git):
        for options in ({"tag": "v1.1"}, {"tag": None}, {"tag": None, "create_pr": True}):
            message = refusal(publish, hub, bare, **options)
            assert f"{bare.name}' has no files; expected the finished folder of a release" in message
    assert len(hub.requests) == asked


IDS = ("ham10000", "a/b/c", "user/", "/name", "user/na me", "user/x--y", "user/x.git", "https://hf.co/user/x", "")


def test_bad_input_is_refused_without_asking_the_hub(hub: HubServer, folder: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        *(({"repo_id": repo_id}, "Expected 'user/name'") for repo_id in IDS),
        *(({"tag": tag}, f"tag {tag!r}") for tag in ("v 1", "-v1", "v1..2", "a/b", "", "v1.lock")),
        *(({"revision": name}, f"revision {name!r}") for name in ("refs/pr/1", "a//b")),
        ({"tag": "main"}, "both named 'main'"),
        ({"commit_message": " "}, "commit message is empty"),
        ({"create_pr": True, "revision": "next"}, "against main"),
    ]
    for options, words in cases:
        assert words in refusal(publish, hub, **{"folder": folder, **options}), options
    assert hub.requests == []
    check_names(REPO, tag="v1.0", revision="feature/x")
    check_names(REPO, tag=None, revision="main")


def test_what_a_release_owns() -> None:
    weights = ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    owned = (*weights, "pipeline_ham10000.py", "figures/per_class.png", "onnx/model.onnx", "onnx/model.onnx.data")
    files = ("README.md", "notes.txt", ".gitattributes", "train_ham10000.py", "adapter_model.safetensors")
    foreign = (*files, "adapter/model.safetensors", "figures/my_plot.png", "onnx/model_quantized.onnx", "sub/onnx/x")
    assert all(is_owned(path) for path in owned)
    assert not any(is_owned(path) for path in foreign)
    assert is_owned("ham10000/a.py", "space")
    assert not is_owned("handler.py", "space")


def test_redact() -> None:
    assert redact(f"x {WRITER}, Bearer abc.def", WRITER) == "x ***, Bearer ***"
    assert redact("hf_AbCdEfGh12345678 and secret", "secret") == "hf_*** and ***"
    assert redact("hf_hub_download failed", "") == "hf_hub_download failed"
    # A token that is cut off in the middle by the length of a message is not shown either.
    assert "secret-t" not in explain(OSError("x" * 290 + " secret-token"), "secret-token")
