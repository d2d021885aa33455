"""The pictures of the documents: a report and a running dashboard, photographed in a headless Chromium.

python cli.py report --study mine --out report
python cli.py dashboard --storage sqlite:///study.db &
python benchmarks/screenshots.py --report report --dashboard http://127.0.0.1:8080/ --trial 21 --out docs/images
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

QUALITY = 80


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True, help="directory of a report")
    parser.add_argument("--dashboard", required=True, help="address of a dashboard that serves the same study as 1")
    parser.add_argument("--trial", type=int, required=True, help="number of the trial that is shown")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for name, figure in (("who-won", "forest"), ("where-hurt", "remaining")):
        shutil.copy(options.report / f"{figure}.png", options.out / f"{name}.png")
    page = (options.report / "index.html").resolve().as_uri()
    study = f"{options.dashboard}dashboard/studies/1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, address, scheme, width, height in (
            ("report-light", page, "light", 1200, 1250),
            ("report-phone-dark", page, "dark", 390, 1500),
            ("dashboard-study", study, "light", 1400, 1990),
            ("dashboard-trial", f"{study}/trials?numbers={options.trial}", "light", 1400, 1000),
        ):
            photograph(browser, address, options.out / f"{name}.jpg", scheme, width, height)
        browser.close()


def photograph(browser: Browser, address: str, path: Path, scheme: str, width: int, height: int) -> None:
    """One page, as far as it fits on that screen, when everything on it is drawn."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address, wait_until="networkidle")
    page.wait_for_timeout(3000)
    page.screenshot(path=path, type="jpeg", quality=QUALITY)
    page.close()


if __name__ == "__main__":
    main()
