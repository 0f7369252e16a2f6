"""Takes the screenshots of the demo in `examples/figures/` with Chromium; run `make demo` first.

python examples/app_screenshots.py runs/demo/image runs/demo/metadata runs/demo/fusion
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from ham10000.hub_upload.app import build_page, load_models, serve
from ham10000.training.utils.files import atomic_path

FIGURES = Path(__file__).parent / "figures"
_VIEWS = {
    "app_desktop": {"viewport": {"width": 1280, "height": 1240}, "color_scheme": "light"},
    "app_phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "device_scale_factor": 1.5},
}


def main(checkpoints: list[str]) -> None:
    """Saves one image a view, each with the same sample, age, sex and site.

    Args:
        checkpoints: What is shown, as for `examples/app.py`.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not checkpoints or chromium is None:
        sys.exit("error: give checkpoints, and install Chromium (apt-get install chromium).")
    page = build_page(load_models(checkpoints))
    address = serve(page, wait=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, view in _VIEWS.items():
            opened = browser.new_page(**view)
            opened.goto(address)
            opened.wait_for_selector("#ham-model-1 table", timeout=60_000)
            opened.locator("#ham-samples").get_by_role("button", name="melanoma", exact=False).first.click()
            for label, option in (("Age in years", "60"), ("Sex", "male"), ("Site on the body", "back")):
                opened.get_by_role("combobox", name=label).click()
                opened.get_by_role("option", name=option, exact=True).click()
            opened.get_by_text("all of them unknown").first.wait_for(timeout=60_000)
            opened.wait_for_timeout(1000)  # until the lists have faded
            if name == "app_phone":
                opened.locator("#ham-model-2 h2").first.evaluate("node => node.scrollIntoView()")
                opened.mouse.wheel(0, -80)
                opened.wait_for_timeout(500)
            else:
                opened.evaluate("window.scrollTo(0, 0)")
                opened.wait_for_timeout(300)
            # A palette makes the file a quarter as large, and nobody sees the difference on a page of few colours.
            shot = Image.open(io.BytesIO(opened.screenshot())).convert("RGB").quantize(256)
            with atomic_path(FIGURES / f"{name}.png") as temporary:
                shot.save(temporary, optimize=True)
            print(f"Saved     {FIGURES / name}.png, {(FIGURES / name).with_suffix('.png').stat().st_size // 1000} kB")
        browser.close()
    page.close()


if __name__ == "__main__":
    main(sys.argv[1:])
