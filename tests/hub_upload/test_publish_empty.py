"""A folder without files is never published: every file of the release before it would be deleted."""

from pathlib import Path

import pytest
from hub_server import WRITER, HubServer
from huggingface_hub import HfApi

from ham10000.hub_upload.publish import Release
from ham10000.modeling import Ham10000Error


@pytest.mark.parametrize("kind", ["missing", "empty", "without files", "only git's own"])
def test_a_folder_without_files_is_refused_before_the_hub_is_asked(kind: str, hub: HubServer, tmp_path: Path) -> None:
    api, complete, folder = HfApi(endpoint=hub.url, token=WRITER), tmp_path / "release", tmp_path / "other"
    complete.mkdir()
    for name in ("model.safetensors", "handler.py", "README.md"):
        (complete / name).write_text(name)
    Release(api, "user/ham10000-fusion").publish(complete, commit_message="Publish")
    before, asked = hub.snapshot(), len(hub.requests)
    if kind != "missing":
        (folder / {"empty": "", "without files": "figures", "only git's own": ".git"}[kind]).mkdir(parents=True)
    if kind == "only git's own":
        (folder / ".git" / "config").write_text("[core]")
    for tag, create_pr in (("v1.1", False), (None, False), (None, True)):
        with pytest.raises(Ham10000Error, match=r"other' has no files; expected the finished folder of a release"):
            Release(api, "user/ham10000-fusion", tag).publish(folder, commit_message="Publish", create_pr=create_pr)
    assert hub.snapshot() == before
    assert len(hub.requests) == asked
