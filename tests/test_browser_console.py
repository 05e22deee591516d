# SPDX-License-Identifier: Apache-2.0
"""The console in a real browser, with a homeserver for which six servers fail.

What goes wrong in the browser itself fails each test: an error of a script, a request
to another host, what the page's own policy forbids.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from browser import PATIENCE_MS, Watched, axe_findings, axe_source, browser
from playwright.sync_api import Browser, Page, expect

from synapse_federation_admin.console.cookie import Origin, Session, cookie_name
from synapse_federation_admin.playground.client import CONSOLE
from synapse_federation_admin.playground.processes import free_port, wait_until
from synapse_federation_admin.playground.records import Behaviour
from synapse_federation_admin.playground.world import Playground

pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.one_synapse]

Open = Callable[..., Watched]

# What is to be scrolled sideways on a phone, though not within a part of its own.
TOO_WIDE = """() => document.documentElement.scrollWidth <= 360 ? []
    : [...document.querySelectorAll("body *")]
        .filter((each) => each.getBoundingClientRect().right > 360)
        .map((each) => each.outerHTML.slice(0, 200))"""

GONE = f"127.0.0.90:{free_port('127.0.0.90')}"

# What is not there, or not for who asks: the browser writes it to its console.
REFUSED = ("status of 401", "status of 403", "status of 404")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    folder = tmp_path_factory.mktemp("world")
    # Who never answers is not waited for any longer.
    config = {"diagnosis": {"timeout": "4s"}, "contact_timeout": "4s"}
    with Playground(folder, module_config=config) as world:
        world.prepare()
        # Who shares no room with us can be forgotten.
        world.client.send_to_device(f"@x:{GONE}", "a key for nobody")
        wait_until(
            lambda: world.client.last_failure_kinds().get(GONE),
            "what shares no room to fail",
            PATIENCE_MS / 1000,
        )
        yield world


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with browser() as chromium:
        yield chromium


@pytest.fixture
def open_window(world: Playground, chromium: Browser) -> Iterator[Open]:
    """Opens windows of an admin who has signed in; none may have met a fault."""
    opened: list[Watched] = []

    def open_window(
        *, allowed: tuple[str, ...] = (), token: str | None = None, **options: Any
    ) -> Watched:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        window = Watched(chromium, world.synapse.url(), **options)
        window.allowed = allowed
        opened.append(window)
        if token != "":
            token = token or world.admin.access_token
            session = Session(Session.new().id, Origin.PASTED, token)
            window.context.add_cookies(
                [
                    {
                        "name": cookie_name(world.synapse.server_name),
                        "value": session.value(),
                        "domain": "127.0.0.1",
                        "path": CONSOLE,
                        "httpOnly": True,
                        "sameSite": "Lax",
                    }
                ]
            )
        return window

    yield open_window
    faults = [fault for window in opened for fault in window.faults]
    for window in opened:
        window.close()
    assert faults == []


def address(world: Playground, path: str = "") -> str:
    return f"{world.synapse.url()}{CONSOLE}{path}"


def server_path(world: Playground, behaviour: Behaviour) -> str:
    return f"servers/{quote(world.remotes[behaviour].server_name, safe='')}"


@contextmanager
def new_page(page: Page) -> Iterator[None]:
    """Wait for the page to which what is done leads."""
    with page.expect_navigation():
        yield


def test_signing_in_and_out(world: Playground, open_window: Open) -> None:
    """A password signs in, and leads to the page that was asked for; out is out."""
    page = open_window(token="", allowed=REFUSED).page
    page.goto(address(world, "servers?destination=127"))
    for password, text in (("wrong", "That did not work"), (world.admin.password, "")):
        page.get_by_label("User").fill("admin")
        page.get_by_label("Password").fill(password)
        with new_page(page):
            page.get_by_role("button", name="Sign in", exact=True).click()
        expect(page.locator("main")).to_contain_text(text)
    expect(page.locator("header")).to_contain_text(world.admin.user_id)
    assert "destination=127" in page.url

    with new_page(page):
        page.get_by_role("button", name="Sign out").click()

    page.goto(address(world))
    expect(page.get_by_role("heading", level=1)).to_contain_text("Sign in")
    assert world.admin.user_id not in page.content()


def test_from_the_overview_to_a_repair(world: Playground, open_window: Open) -> None:
    """What fails is found by its cause, opened, diagnosed, brought up and reconnected.

    Back, forward and loading again lead to the same pages.
    """
    page = open_window().page
    remote = world.remotes[Behaviour.BAD_GATEWAY]
    page.goto(address(world))
    expect(page.locator("#verdict h1")).to_contain_text("6 of 8 servers are failing")
    row = page.locator("#failing tbody tr", has_text="HTTP error")
    with new_page(page):
        row.get_by_role("link").last.click()
    listed = page.locator("tr[data-row]")
    expect(listed).to_have_count(1)
    with new_page(page):
        listed.get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(remote.server_name)
    with new_page(page):
        page.get_by_role("button", name="Diagnose").click()
    expect(page.locator(".advice")).to_contain_text("HTTP 502")

    remote.switch(Behaviour.HEALTHY)
    with new_page(page):
        page.get_by_role("button", name="Reconnect").click()
    expect(page.locator("main")).to_contain_text("Connected")

    page.goto(address(world))
    with new_page(page):
        page.get_by_role("link", name="Servers", exact=True).click()
    for go in (page.go_back, page.go_forward, page.reload):
        go()
    assert urlsplit(page.url).path.endswith("/servers")
    expect(page.locator("tr[data-row]")).to_have_count(8)


def paths(world: Playground) -> list[str]:
    """Return every kind of page that nothing has to be done for."""
    return [
        "",
        "servers",
        "servers?failing_for=0s&order_by=failure_ts&dir=b",
        "servers?destination=nothing",
        server_path(world, Behaviour.DOWN),
        server_path(world, Behaviour.HEALTHY),
        f"{server_path(world, Behaviour.DOWN)}/forget",
        f"{server_path(world, Behaviour.DOWN)}/reset",
        "reconnect?all=true&failing_for=0s",
        "runs",
        "audit",
        "us",
        "keys",
        "session",
        "nothing",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(
    world: Playground, open_window: Open, scheme: str
) -> None:
    """axe finds nothing on any page; at 360 pixels none is wider than the screen."""
    page = open_window(color_scheme=scheme, allowed=REFUSED).page
    source = axe_source()
    found: list[str] = []
    for path in paths(world):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(address(world, path))
        found += [f"{path}: {each}" for each in axe_findings(page, source)]
        page.set_viewport_size({"width": 360, "height": 780})
        found += [f"{path}, narrow: {each}" for each in axe_findings(page, source)]
        found += [f"{path}, too wide: {each}" for each in page.evaluate(TOO_WIDE)]
    assert found == []


def test_without_script(world: Playground, open_window: Open) -> None:
    """Without JavaScript a server is found, opened and diagnosed all the same."""
    page = open_window(java_script_enabled=False).page
    remote = world.remotes[Behaviour.EXPIRED_CERTIFICATE]
    page.goto(address(world, "servers"))
    page.get_by_label("Name", exact=True).fill(remote.server_name)
    with new_page(page):
        page.get_by_role("button", name="Show").click()
    with new_page(page):
        page.locator("tr[data-row] a").first.click()
    with new_page(page):
        page.get_by_role("button", name="Diagnose").click()
    expect(page.locator(".advice")).to_contain_text("Expired TLS certificate")


def test_by_keyboard(world: Playground, open_window: Open) -> None:
    """With keys alone a server is found, selected, opened and diagnosed."""
    page = open_window().page
    page.goto(address(world))
    with new_page(page):
        page.keyboard.type("gs")
    page.keyboard.press("/")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type(world.remotes[Behaviour.WRONG_NAME_CERTIFICATE].server_name)
    with new_page(page):
        page.keyboard.press("Enter")
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(page.locator("tr[data-row] input:checked")).to_have_count(1)
    with new_page(page):
        page.keyboard.press("Enter")
    with new_page(page):
        page.keyboard.press("d")
    expect(page.locator(".advice")).to_contain_text("certificate for another host")
    with new_page(page):
        page.keyboard.press("?")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Keys")


def select(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_label(f"Select {name}", exact=True).check()


def test_runs(world: Playground, open_window: Open) -> None:
    """What is selected is told first, then asked, and its run is seen to end.

    Another one is cancelled before it ends.
    """
    page = open_window().page
    names = [
        world.remotes[behaviour].server_name
        for behaviour in (Behaviour.HANGING, Behaviour.EXPIRED_CERTIFICATE)
    ]
    for pace, button, word in (("10", "", "ended"), ("0.1", "Cancel", "cancelled")):
        page.goto(address(world, "servers?failing_for=0s"))
        select(page, *names)
        with new_page(page):
            page.get_by_role("button", name="Reconnect").click()
        for name in names:
            expect(page.locator("main")).to_contain_text(name)
        page.get_by_label("Contacts a second").fill(pace)
        with new_page(page):
            page.get_by_role("button", name="Reconnect").click()
        assert "/runs/" in page.url
        if button:
            with new_page(page):
                page.get_by_role("button", name=button).click()
        expect(page.locator("#run")).to_contain_text(word)
    page.goto(address(world, "runs"))
    expect(page.locator("main")).to_contain_text("cancelled")


def test_forgetting(world: Playground, open_window: Open) -> None:
    """Who shares rooms with us is not forgotten; of others it is told what is lost."""
    page = open_window().page
    for name in (world.remotes[Behaviour.DOWN].server_name, GONE):
        page.goto(address(world, f"servers/{quote(name, safe='')}"))
        with new_page(page):
            page.get_by_role("link", name="Forget").click()
        button = page.get_by_role("button", name="Forget this server")
        if name != GONE:
            expect(page.locator("main")).to_contain_text("cannot be forgotten")
            expect(button).to_have_count(0)
    page.get_by_label("Delete 1 ").check()
    with new_page(page):
        button.click()
    page.goto(address(world, "servers?failing_for=0s"))
    expect(page.locator("main")).to_contain_text(
        world.remotes[Behaviour.DOWN].server_name
    )
    expect(page.locator("main")).not_to_contain_text(GONE)
    page.goto(address(world, "audit"))
    expect(page.locator("main")).to_contain_text(GONE)


def test_export(world: Playground, open_window: Open, tmp_path: Path) -> None:
    """What is listed is had as a file."""
    page = open_window().page
    page.goto(address(world, "servers?failing_for=0s"))
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    file = tmp_path / "servers.csv"
    download.value.save_as(file)
    assert world.remotes[Behaviour.DOWN].server_name in file.read_text()


def test_sessions_that_end(world: Playground, open_window: Open) -> None:
    """A page of which the token has ended says so, and so does what is sent from it.

    Another tab of the same browser is signed out, too, and signs in again.
    """
    user = world.client.login("admin", world.admin.password)
    window = open_window(token=user.access_token, allowed=REFUSED)
    page, other = window.page, window.context.new_page()
    page.goto(address(world))
    other.goto(address(world, server_path(world, Behaviour.DOWN)))

    world.synapse.client(user).request("POST", "/_matrix/client/v3/logout")

    expect(page.locator("[data-updated]").first).to_contain_text("You are signed out")
    with new_page(other):
        other.get_by_role("button", name="Diagnose").click()
    expect(other.locator("main")).to_contain_text("This session has ended")
    other.get_by_label("User").fill("admin")
    other.get_by_label("Password").fill(world.admin.password)
    with new_page(other):
        other.get_by_role("button", name="Sign in", exact=True).click()
    page.reload()
    expect(page.locator("#verdict")).to_be_visible()


def test_homeserver_away(world: Playground, open_window: Open) -> None:
    """A page says that the homeserver is away, and goes on once it is there again.

    What refreshes keeps what has the focus, what is selected, and the place.
    """
    page = open_window(
        allowed=("ERR_CONNECTION_REFUSED", "ERR_SOCKET_NOT_CONNECTED", "ERR_EMPTY")
    ).page
    page.goto(address(world))
    updated = page.locator("[data-updated]").first
    link = page.locator("#failing a").last
    link.focus()

    world.synapse.stop()
    expect(updated).to_contain_text("does not answer")
    world.synapse.start()
    expect(updated).to_contain_text("updated")
    expect(updated).not_to_contain_text("does not answer")

    expect(link).to_be_focused()
