"""Takes demo.png, a screenshot of the demo page with a segmented drawing or photograph.

python -m petseg.deployment.demo --port=7860 &
python docs/pictures/demo.py http://127.0.0.1:7860 [photograph]
"""

import shutil
import sys
from pathlib import Path

from playwright import sync_api


def main(url: str, photograph: str = "") -> None:
    with sync_api.sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(url)
        field = page.locator("#photo input[type=file]")
        field.wait_for(state="attached", timeout=60_000)
        page.wait_for_timeout(1000)  # until the drawings have loaded
        if photograph:
            field.set_input_files(photograph)
        else:
            page.locator(".gallery-item").nth(2).click()
        page.locator("#cutout img").wait_for(timeout=120_000)
        page.mouse.move(5, 5)  # away from anything that reacts to the pointer
        page.wait_for_timeout(3000)  # until the images are shown
        page.screenshot(path=Path(__file__).parent / "demo.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
