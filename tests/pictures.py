# SPDX-License-Identifier: Apache-2.0
"""Takes pictures of the console: `python tests/pictures.py FOLDER [all]`.

Of the playground, with its servers' names: the overview and a server's page, light and
dark, as they are in docs/console.md; with `all` every page, and at 360 pixels, too.
"""

import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from browser import browser
from PIL import Image
from playwright.sync_api import Page

from synapse_federation_admin.playground.client import CONSOLE
from synapse_federation_admin.playground.control import Control
from synapse_federation_admin.playground.world import Playground

SHOWN = {"overview": "", "server": "servers/{name}"}
OTHERS = {
    "servers": "servers?failing_for=0s&order_by=failure_ts",
    "reconnect": "reconnect?all=true&failing_for=0s",
    "runs": "runs",
    "audit": "audit",
    "us": "us",
    "keys": "keys",
}
SIZES = {"": (1280, 900), "-narrow": (360, 780)}


def take(page: Page, world: Playground, folder: Path, is_all: bool) -> None:
    """Take the pictures with a browser that has signed in."""
    name = quote(world.failing[1].server_name, safe="")
    for picture, path in {**SHOWN, **(OTHERS if is_all else {})}.items():
        url = f"{world.synapse.url()}{CONSOLE}{path.format(name=name)}"
        for size, (width, height) in SIZES.items():
            if size and not is_all:
                continue
            page.set_viewport_size({"width": width, "height": height})
            page.goto(url)
            if picture == "server":
                page.get_by_role("button", name="Diagnose").click()
                page.locator("ol.path").wait_for()
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                file = folder / f"console-{picture}-{scheme}{size}.png"
                page.screenshot(path=file, full_page=is_all)
                # As few bytes as tell the same.
                Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


def main(folder: Path, is_all: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as files,
        Playground(Path(files), is_populated=True, progress=print) as world,
        browser() as chromium,
    ):
        world.prepare()
        world.client.reconnect(world.failing[0].server_name)
        world.client.start_run(all_failing=True, reason="after our provider's outage")
        with Control(world) as control:
            page = chromium.new_page()
            page.goto(control.sign_in_url)
            take(page, world, folder, is_all)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "all" in sys.argv[2:])
