"""The demo in Chromium, as somebody uses it: with a mouse, with a keyboard only, on a phone, with the wrong files."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from ham10000.modeling import LABEL_DESCRIPTIONS, LABELS, MODALITIES
from ham10000.training.inference.prediction import load_checkpoint, predict

pytest.importorskip("gradio", reason="the demo needs the extra app")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")

from ham10000.hub_upload.app import build_page, load_models, sample_images, serve  # noqa: E402

pytestmark = pytest.mark.slow

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
UPLOAD = "#ham-file input[type=file]"
METER = '[data-testid$="-confidence-set"] meter'  # of gr.Label
SAMPLE = f'#ham-samples button:has-text("{LABEL_DESCRIPTIONS["mel"]}")'


@pytest.fixture(scope="module")
def address(tiny_checkpoints: dict[str, Path]) -> Iterator[str]:
    page = build_page(load_models([str(folder) for folder in tiny_checkpoints.values()]))
    yield serve(page, wait=False)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if _CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[DESKTOP], ids=["desktop"])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """The opened page with its first answer; whatever a test does, nothing may be fetched from elsewhere."""
    context = browser.new_context(viewport=request.param)
    strangers: list[str] = []

    def refuse(route: Any) -> None:
        strangers.append(route.request.url)
        route.abort()

    context.route(lambda url: not url.startswith((address, "data:", "blob:")), refuse)
    opened = context.new_page()
    opened.goto(address)
    opened.wait_for_selector(METER, timeout=60_000)
    sync_api.expect(opened.locator("#ham-model-2 table").first).to_be_visible(timeout=20_000)
    yield opened
    context.close()
    assert not strangers


def column(page: Any, modality: str) -> Any:
    return page.locator(f"#ham-model-{MODALITIES.index(modality)}")


def shares(page: Any, modality: str) -> dict[str, float]:
    """The probabilities of one model as the meters of the page have them."""
    values = column(page, modality).locator(METER).evaluate_all("all => all.map(e => [e.ariaLabel, e.value])")
    return {text.rpartition("(")[2].rstrip(")"): value for text, value in values}


def wait_for(page: Any, folder: Path, picture: Path, **metadata: Any) -> dict[str, float]:
    """Until the page shows what `ham10000-predict` says, which is returned."""
    model, processor = load_checkpoint(folder)
    images = [picture] if model.config.uses_image else None
    row = predict(model, processor, images, [metadata] if model.config.uses_metadata else None)[0]
    numbers = dict(zip(LABELS, row.tolist(), strict=True))
    for _ in range(200):
        if shares(page, model.config.modality) == pytest.approx(numbers, abs=1e-5):
            break
        page.wait_for_timeout(100)
    assert shares(page, model.config.modality) == pytest.approx(numbers, abs=1e-5)
    return numbers


def choose(page: Any, label: str, steps: int) -> None:
    """Moves a list by arrow keys, as somebody without a mouse does."""
    page.get_by_role("combobox", name=label).focus()  # which opens it
    for _ in range(steps):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "lesion.png"
    sample_images()["mel"].save(path)
    return path


def test_an_upload_and_a_site_move_the_numbers(page: Any, picture: Path, tiny_checkpoints: dict[str, Path]) -> None:
    page.set_input_files(UPLOAD, picture)
    for folder in tiny_checkpoints.values():
        wait_for(page, folder, picture)
    before = {modality: shares(page, modality) for modality in tiny_checkpoints}
    page.get_by_label("Site on the body").click()
    page.get_by_role("option", name="face").click()
    for modality in ("metadata", "fusion"):
        numbers = wait_for(page, tiny_checkpoints[modality], picture, localization="face")
        assert numbers != pytest.approx(before[modality], abs=1e-5)
    assert shares(page, "image") == before["image"]
    sync_api.expect(column(page, "fusion")).to_contain_text("site unknown")
    page.get_by_label("site", exact=True).check()
    sync_api.expect(column(page, "fusion").locator("td strong")).to_have_text(["as given", "site face"])
    page.get_by_label("Class to explain").click()
    page.get_by_role("option", name="melanoma").click()
    sync_api.expect(page.get_by_alt_text("for melanoma (mel)")).to_have_count(2, timeout=20_000)
    sync_api.expect(page.locator("#ham-warning p")).to_have_count(0)


def test_wrong_files_leave_the_page_usable(page: Any, picture: Path, tiny_checkpoints: dict[str, Path]) -> None:
    """With clear words; all of them are in test_app.py."""
    cut, temple = picture.with_name("cut.png"), picture.with_name("temple.jpg")
    cut.write_bytes(picture.read_bytes()[:5000])
    Image.fromarray(load_sample_image("china.jpg")).save(temple)
    warning, clear = page.locator("#ham-warning"), page.get_by_role("button", name="Clear")
    page.set_input_files(UPLOAD, cut)
    sync_api.expect(warning.get_by_role("alert")).to_contain_text("“cut.png” cannot be shown", timeout=20_000)
    sync_api.expect(column(page, "image")).to_contain_text("needs an image")
    clear.click()
    sync_api.expect(warning.locator("p")).to_have_count(0, timeout=20_000)
    page.set_input_files(UPLOAD, temple)
    sync_api.expect(warning.get_by_role("status")).to_contain_text("unlike those the model", timeout=20_000)
    # A warning is no refusal, but no class is the answer.
    wait_for(page, tiny_checkpoints["image"], temple)
    sync_api.expect(page.get_by_test_id("label-output-value")).to_have_count(0)
    clear.click()
    sync_api.expect(warning.locator("p")).to_have_count(0, timeout=20_000)
    page.locator(SAMPLE).click()
    wait_for(page, tiny_checkpoints["image"], picture)


def test_the_keyboard_is_enough(page: Any, picture: Path, tiny_checkpoints: dict[str, Path]) -> None:
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(() => { const e = document.activeElement;"
            " return e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || ''; })()"
        )
        reached.append(name.strip())
        if reached[-1] == LABEL_DESCRIPTIONS["mel"]:
            page.keyboard.press("Enter")
            wait_for(page, tiny_checkpoints["image"], picture)
    for control in ("Click to upload", "Age in years", "Sex", "Site on the body", "Class to explain", "age"):
        assert any(name.startswith(control) for name in reached), (control, reached)
    choose(page, "Age in years", 2)
    wait_for(page, tiny_checkpoints["fusion"], picture, age=5)
    choose(page, "Sex", 1)
    wait_for(page, tiny_checkpoints["fusion"], picture, age=5, sex="female")


def notice_is_in_view(page: Any) -> bool:
    """Whether the notice is inside the window and nothing lies over its middle."""
    return page.evaluate(
        "(() => { const notice = document.querySelector('#ham-notice'), box = notice.getBoundingClientRect();"
        " const over = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);"
        " return box.top >= 0 && box.bottom <= innerHeight && box.height > 10 && notice.contains(over); })()"
    )


@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_the_notice_stays_and_nothing_is_wider_than_the_window(page: Any) -> None:
    assert "never for diagnosis" in page.locator("#ham-notice").inner_text()
    for place in (0, 0.5, 1):
        page.evaluate(f"window.scrollTo(0, {place} * document.documentElement.scrollHeight)")
        page.wait_for_timeout(100)
        assert notice_is_in_view(page), place
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_control_and_picture_has_a_name(page: Any) -> None:
    nameless = page.evaluate(
        "[...document.querySelectorAll('input:not([type=file]), button, select, textarea')]"
        ".filter(e => e.offsetParent && !(e.getAttribute('aria-label') || e.labels?.length || e.innerText.trim()"
        " || e.title || e.querySelector('img[alt]')?.alt)).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator(SAMPLE).get_by_role("img").count() == 1
