# SPDX-License-Identifier: Apache-2.0
"""Takes pictures of the console: `python tests/pictures.py FOLDER [all]`.

Of the playground, with its servers' names: the overview and a server's page, light and
dark, as they are in docs/console.md. With `all` every page, at 360 pixels, too, and of
homeservers of each kind: a new one, one where all is well, one with 500 servers that
fail, and one of which a sender is down.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from browser import PATIENCE_MS, browser
from PIL import Image
from PIL.Image import Quantize
from playwright.sync_api import Page

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.playground.client import CONSOLE
from synapse_federation_admin.playground.control import Control
from synapse_federation_admin.playground.population import change
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.world import Playground

SHOWN = {"overview": "", "server": "servers/{name}"}
MAIN = {
    **SHOWN,
    "servers": "servers?failing_for=0s&order_by=failure_ts",
    "us": "us",
    "runs": "runs",
    "audit": "audit",
}
OTHERS = {
    "reconnect": "reconnect?all=true&failing_for=0s",
    "forget": "servers/{name}/forget",
    "forget-many": "forget?all=true&failing_for=30d",
    "reset": "servers/{name}/reset",
    "cap-backoff": "cap_backoff?longest=1h",
    "unlisted": "unlisted",
    "error": "servers?failing_for=long",
    "sign-in": "session",
}
SIZES = {"": (1280, 900), "-narrow": (360, 780)}

WORDS = ("chat", "matrix", "home", "im", "hs", "talk", "box", "m", "node", "synapse")
PLACES = ("garden", "harbour", "library", "museum", "orchard", "quarry", "river")
MANY = 500


class Camera:
    """Takes pictures with a browser that has signed in."""

    def __init__(self, world: Playground, page: Page, folder: Path, is_all: bool):
        self.world = world
        self.page = page
        self.folder = folder
        self.is_all = is_all

    def take(self, pages: Mapping[str, str], prefix: str = "console") -> None:
        """Take pages, each light and dark; narrow ones, too, if it is all of them."""
        name = quote(self.world.failing[1].server_name, safe="")
        for picture, path in pages.items():
            url = f"{self.world.synapse.url()}{CONSOLE}{path.format(name=name)}"
            for size, (width, height) in SIZES.items():
                if size and not self.is_all:
                    continue
                self.page.set_viewport_size({"width": width, "height": height})
                self.page.goto(url)
                diagnose = self.page.get_by_role("button", name="Diagnose")
                if picture == "server" and diagnose.count():
                    diagnose.click()
                    self.page.locator("ol.path").wait_for()
                self.take_here(f"{prefix}-{picture}", size, is_full=self.is_all)

    def take_here(self, picture: str, size: str = "", *, is_full: bool = False) -> None:
        """Take the page that is there, light and dark."""
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            file = self.folder / f"{picture}-{scheme}{size}.png"
            self.page.screenshot(path=file, full_page=is_full)
            # As few bytes as tell the same, with the colours of few words, too.
            few = Image.open(file).convert("RGB").quantize(256, Quantize.FASTOCTREE)
            few.save(file, optimize=True)


def add_many(world: Playground) -> None:
    """Write into the database that many more servers fail."""
    now_ms = int(time.time() * 1000)
    kinds = list(FailureKind)
    names, failures, outages = [], [], []
    for number in range(MANY):
        word, place = WORDS[number % len(WORDS)], PLACES[number % len(PLACES)]
        name = f"{word}.{place}{number}.example"
        kind = kinds[number * number % len(kinds)].value
        since_ms = now_ms - (60_000 + number**4 % (90 * 86_400_000))
        interval_ms = min(600_000 << number % 9, 86_400_000)
        names.append(f"('{name}', {since_ms}, {now_ms - 5000}, {interval_ms}, 7)")
        failures.append(
            f"('{name}', '{kind}', {since_ms}, {now_ms}, {number}, '', 'main', '')"
        )
        outages.append(f"('{name}', {since_ms}, '{kind}', '{kind}')")
    tables = {
        "destinations (destination, failure_ts, retry_last_ts, retry_interval, "
        "last_successful_stream_ordering)": names,
        "federation_admin_failures (destination, kind, first_ts, last_ts, count, "
        "message, instance, issuer)": failures,
        "federation_admin_outages (destination, start_ts, kinds, last_kind)": outages,
    }
    change(
        world.synapse,
        [
            (f"INSERT INTO {table} VALUES {', '.join(rows)}", [])
            for table, rows in tables.items()
        ],
    )


def take_all(world: Playground, camera: Camera) -> None:
    """Take every page of homeservers of each kind."""
    camera.take({name: path for name, path in MAIN.items() if name != "server"}, "new")
    world.settle()
    camera.take(MAIN, "calm")
    world.break_some()
    world.client.reconnect(world.failing[0].server_name)
    options = {"per_second": 0.4, "reason": "after our provider's outage"}
    run = world.client.start_run(all_failing=True, **options)
    camera.take({**MAIN, "run": f"runs/{run['id']}", **OTHERS})
    take_beside(world, camera)
    sender = world.synapse.processes[-1]
    world.synapse.stop(sender)

    def is_gone() -> bool:
        camera.page.goto(f"{world.synapse.url()}{CONSOLE}us")
        return "gone" in camera.page.locator("#us").inner_text()

    wait_until(is_gone, "a sender to be known as gone", 120, 2)
    camera.take({name: MAIN[name] for name in ("overview", "us", "server")}, "down")
    world.synapse.start(sender)
    add_many(world)
    camera.take({**MAIN, "run": f"runs/{run['id']}"}, "many")


def take_beside(world: Playground, camera: Camera) -> None:
    """Take what is shown beside a page: the keys, and what does not answer."""
    page = camera.page
    for size, (width, height) in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        page.goto(f"{world.synapse.url()}{CONSOLE}")
        page.keyboard.press("?")
        page.get_by_text("next row").wait_for()
        camera.take_here("console-help", size)
        page.keyboard.press("?")
        world.synapse.stop()
        page.get_by_text("does not answer").wait_for(timeout=PATIENCE_MS)
        camera.take_here("console-away", size)
        world.synapse.start()


def main(folder: Path, is_all: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as files,
        Playground(
            Path(files), is_populated=True, workers=is_all, progress=print
        ) as world,
        browser() as chromium,
        Control(world) as control,
    ):
        page = chromium.new_page()
        page.goto(control.sign_in_url)
        camera = Camera(world, page, folder, is_all)
        if is_all:
            take_all(world, camera)
            return
        world.prepare()
        world.client.reconnect(world.failing[0].server_name)
        world.client.start_run(all_failing=True, reason="after our provider's outage")
        camera.take(SHOWN)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "all" in sys.argv[2:])
