"""A headless Chromium (Debian's) and `cclm search --serve`: for the tests of the page, and for its picture in docs.

python -m tests.page.browser install                            Chromium by apt-get, if it is not there (root)
python -m tests.page.browser picture EMBEDDED --model FOLDER --query TEXT --to docs/images/search.png
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_MS = 180_000
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Where the system's Chromium is."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def install() -> None:
    """Install Debian's Chromium if none is there."""
    if chromium():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", *command], env=environment, stdout=sys.stderr, check=True, timeout=600)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start it by playwright, which brings no browser of its own here."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"], timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(embedded: Path, model: Path, *more: str) -> Iterator[str]:
    """Run the command; yield the page's address."""
    command = [
        sys.executable,
        "-m",
        "cclm.cli",
        "search",
        str(embedded),
        "--model",
        str(model),
        "--serve",
        "--port",
        "0",
    ]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0, "it ends cleanly"


def take_picture(address: str, query: str, to: Path) -> None:
    """Ask the page, and write what it shows as PNG of few colours."""
    from PIL import Image

    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1080, "height": 900})
        page.goto(address)
        page.get_by_role("searchbox").fill(query)
        page.keyboard.press("Enter")
        page.get_by_role("list").first.wait_for()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=str(to), full_page=False)
    with Image.open(to) as image:
        few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install")
    picture = commands.add_parser("picture")
    picture.add_argument("embedded", type=Path)
    picture.add_argument("--model", type=Path, required=True)
    picture.add_argument("--query", required=True)
    picture.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "install":
        if chromium() is None:
            install()
        return
    with served(options.embedded, options.model) as address:
        take_picture(address, options.query, options.to)


if __name__ == "__main__":
    main()
