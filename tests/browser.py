# SPDX-License-Identifier: Apache-2.0
"""A real browser: the Chromium of the system, driven by Playwright.

Nothing is downloaded but axe-core, which npm fetches once, and which is cached outside
of the repository.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conftest import cache, find_chromium
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    sync_playwright,
)

# For a machine that is busy with something else.
PATIENCE_MS = 60_000

AXE = "axe-core@4"


@contextmanager
def browser() -> Iterator[Browser]:
    """Have a browser, without a window."""
    path = find_chromium()
    assert path, "there is no Chromium"
    with sync_playwright() as playwright:
        # Its own sandbox is not there for root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        # Containers have little of that memory.
        options += ["--disable-dev-shm-usage", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield chromium
        finally:
            chromium.close()


class Watched:
    """A browser's window, of which all that goes wrong is remembered."""

    def __init__(self, browser: Browser, base_url: str, **options: Any) -> None:
        self.base_url = base_url
        self.faults: list[str] = []
        # What is expected to be written to the browser's console.
        self.allowed: tuple[str, ...] = ()
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.context.on("console", self._on_console)
        self.context.on("weberror", lambda e: self.faults.append(f"error: {e.error}"))
        self.context.on("request", self._on_request)
        self.page: Page = self.context.new_page()

    def close(self) -> None:
        self.context.close()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            text = f"{message.type}: {message.text}"
            if not any(allowed in text for allowed in self.allowed):
                self.faults.append(f"{text} ({message.location.get('url')})")

    def _on_request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.base_url).netloc:
            self.faults.append(f"a request to another host: {request.url}")


def axe_source() -> str:
    """Return the script of axe-core."""
    target = cache() / f"{AXE}.js"
    if not target.is_file():
        assert shutil.which("npm"), f"there is no npm, which fetches {AXE}"
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            # From wherever npm gets it here.
            subprocess.run(
                ["npm", "pack", AXE, "--silent", "--cache", folder],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            (archive,) = Path(folder).glob("*.tgz")
            with tarfile.open(archive) as package:
                package.extract("package/axe.min.js", folder, filter="data")
            # Another test run may be as fast.
            (Path(folder) / "package" / "axe.min.js").replace(target)
    return target.read_text(encoding="utf-8")


def axe_findings(page: Page, source: str) -> Sequence[str]:
    """Return what axe finds on a page: its rule, and where."""
    page.evaluate(source)
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{violation['id']} ({violation['help']}): {node['target']} {node['html']:.200}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]
