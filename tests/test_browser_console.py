# SPDX-License-Identifier: Apache-2.0
"""The console in a real browser, with a homeserver for which six servers fail.

One homeserver for all tests, and so one file; on PostgreSQL, so that its database can
go away alone.

What goes wrong in the browser itself fails each test: an error of a script, a request
to another host, what the page's own policy forbids.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from browser import PATIENCE_MS, Watched, axe_findings, axe_source, browser
from playwright.sync_api import Browser, Page, Route, expect

from synapse_federation_admin.console.cookie import (
    Origin,
    Renewal,
    Session,
    cookie_name,
)
from synapse_federation_admin.playground.client import CONSOLE, FEDERATION_V2
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

# A function: a mere expression is evaluated by the page each time that it is asked for,
# which its policy forbids, but for the first.
IS_SCROLLED = "() => scrollY > 100"

GONE = f"127.0.0.90:{free_port('127.0.0.90')}"

# What is not there, or not for who asks: the browser writes it to its console.
REFUSED = ("status of 401", "status of 403", "status of 404")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    folder = tmp_path_factory.mktemp("world")
    # Who never answers is not waited for any longer.
    config = {"diagnosis": {"timeout": "4s"}, "contact_timeout": "4s"}
    with Playground(folder, module_config=config, postgres=True) as world:
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
            keep(world, window, "session", session.value())
        return window

    yield open_window
    faults = [fault for window in opened for fault in window.faults]
    for window in opened:
        window.close()
    assert faults == []


def keep(world: Playground, window: Watched, purpose: str, value: str) -> None:
    """Have a browser keep one of the console's cookies."""
    cookie = {
        "name": cookie_name(world.synapse.server_name, purpose),
        "value": value,
        "domain": "127.0.0.1",
        "path": CONSOLE,
        "httpOnly": True,
        "sameSite": "Lax",
    }
    window.context.add_cookies([cookie])


def address(world: Playground, path: str = "") -> str:
    return f"{world.synapse.url()}{CONSOLE}{path}"


def server_path(world: Playground, behaviour: Behaviour) -> str:
    return f"servers/{quote(world.remotes[behaviour].server_name, safe='')}"


@contextmanager
def new_page(page: Page) -> Iterator[None]:
    """Wait for the page to which what is done leads."""
    with page.expect_navigation():
        yield


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

    page.set_viewport_size({"width": 1280, "height": 300})
    page.goto(address(world))
    with new_page(page):
        page.get_by_role("link", name="Servers", exact=True).click()
    for go in (page.go_back, page.go_forward, page.reload):
        go()
    assert urlsplit(page.url).path.endswith("/servers")
    expect(page.locator("tr[data-row]")).to_have_count(8)
    page.mouse.wheel(0, 200)
    page.wait_for_function(IS_SCROLLED)
    with new_page(page):
        page.locator("tr[data-row] a").last.click()
    page.go_back()
    page.wait_for_function(IS_SCROLLED)


def paths(world: Playground) -> list[str]:
    """Return every kind of page that nothing has to be done for."""
    runs = world.client.request("GET", f"{FEDERATION_V2}/runs")["runs"]
    run_id = runs[0]["id"] if runs else start_run(world)
    return [
        "",
        "servers",
        "servers?failing_for=0s&order_by=failure_ts&dir=b",
        "servers?destination=nothing",
        server_path(world, Behaviour.DOWN),
        server_path(world, Behaviour.HEALTHY),
        f"{server_path(world, Behaviour.DOWN)}/forget",
        f"servers/{quote(GONE, safe='')}/forget",
        f"{server_path(world, Behaviour.DOWN)}/reset",
        "reconnect?all=true&failing_for=0s",
        "forget?all=true&failing_for=0s",
        "cap_backoff?longest=1m",
        "runs",
        f"runs/{run_id}",
        "audit",
        "unlisted",
        "us",
        "session",
        "nothing",
        "servers?failing_for=long",
    ]


def start_run(world: Playground) -> str:
    """Begin a run over all that fail, and return its ID."""
    return str(world.client.start_run(all_failing=True)["id"])


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_everybody_can_read_it(
    world: Playground, open_window: Open, scheme: str, width: int
) -> None:
    """axe finds nothing on any page; at 360 pixels none is wider than the screen.

    That is so of what is shown beside a page, too: a diagnosis, the keys.
    """
    page = open_window(
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        allowed=(*REFUSED, "status of 400"),
    ).page
    source = axe_source()
    found: list[str] = []

    def look(what: str) -> None:
        nonlocal found
        found += [f"{what}: {each}" for each in axe_findings(page, source)]
        if width == 360:
            found += [f"{what}, too wide: {each}" for each in page.evaluate(TOO_WIDE)]

    for path in paths(world):
        page.goto(address(world, path))
        look(path)
    page.goto(address(world, server_path(world, Behaviour.BAD_GATEWAY)))
    with new_page(page):
        page.get_by_role("button", name="Diagnose").click()
    expect(page.locator("ol.path")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_text("next row")).to_be_visible()
    look("a diagnosis, and the keys")
    assert found == []


def test_without_script(world: Playground, open_window: Open) -> None:
    """Without JavaScript all is done but what needs to be live.

    A server is found, opened and diagnosed; a selection is reconnected after a dry run,
    and its run is seen to end; what was done is in the audit; signing out is out.
    """
    # Else the run of this test is refused on a quick machine.
    ask = partial(world.client.request, "GET", f"{FEDERATION_V2}/runs")
    wait_until(
        lambda: all(run["ended_ts"] for run in ask()["runs"]),
        "the runs of the tests before to end",
        PATIENCE_MS / 1000,
    )
    user = world.client.login("admin", world.admin.password)
    page = open_window(java_script_enabled=False, token="", allowed=REFUSED).page
    remote = world.remotes[Behaviour.EXPIRED_CERTIFICATE]
    page.goto(address(world, "servers"))
    page.get_by_text("With an access token").click()
    page.get_by_label("Access token of a server admin").fill(user.access_token)
    with new_page(page):
        page.get_by_role("button", name="Sign in with this token").click()
    page.get_by_label("Name", exact=True).fill(remote.server_name)
    with new_page(page):
        page.get_by_role("button", name="Show").click()
    select(page, remote.server_name)
    with new_page(page):
        page.get_by_role("button", name="Reconnect").click()
    expect(page.locator("main")).to_contain_text(remote.server_name)
    page.get_by_label("Why, for the audit").fill("without a script")
    with new_page(page):
        page.get_by_role("button", name="Reconnect").click()

    def has_ended() -> bool:
        page.reload()
        return "1 of 1 done · ended" in page.locator("#run").inner_text()

    wait_until(has_ended, "the run to end", PATIENCE_MS / 1000, 0.5)
    page.goto(address(world, "servers"))
    with new_page(page):
        page.get_by_role("link", name=remote.server_name).click()
    with new_page(page):
        page.get_by_role("button", name="Diagnose").click()
    expect(page.locator(".advice")).to_contain_text("Expired TLS certificate")
    page.goto(address(world, "audit"))
    page.get_by_label("Server").fill(remote.server_name)
    with new_page(page):
        page.get_by_role("button", name="Filter").click()
    expect(page.locator("main")).to_contain_text("without a script")
    with new_page(page):
        page.get_by_role("button", name="Sign out").click()
    page.goto(address(world))
    expect(page.get_by_role("heading", level=1)).to_contain_text("Sign in")


def test_by_keyboard(world: Playground, open_window: Open) -> None:
    """With keys alone a server is found, opened and diagnosed, and a run confirmed."""
    page = open_window().page
    keys = page.keyboard
    remote = world.remotes[Behaviour.WRONG_NAME_CERTIFICATE]
    page.goto(address(world))
    with new_page(page):
        keys.type("gs")
    keys.press("/")
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    keys.type(remote.server_name)
    with new_page(page):
        keys.press("Enter")
    keys.press("j")
    keys.press("x")
    expect(page.locator("tr[data-row] input:checked")).to_have_count(1)
    with new_page(page):
        keys.press("d")
    expect(page.locator(".advice")).to_contain_text("certificate for another host")
    page.go_back()
    keys.press("j")
    with new_page(page):
        keys.press("Enter")
    with new_page(page):
        keys.press("d")
    expect(page.locator(".advice")).to_contain_text("certificate for another host")

    page.go_back()
    page.goto(address(world, "servers?failing_for=0s"))
    keys.press("j")
    keys.press("j")
    keys.press("k")
    with new_page(page):
        keys.press("r")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Reconnect 1 server?")
    button = page.locator("main").get_by_role("button", name="Reconnect")
    for _ in range(30):
        if button.evaluate("each => each === document.activeElement"):
            break
        keys.press("Tab")
    with new_page(page):
        keys.press("Enter")
    assert "/runs/" in page.url
    for key, word in (("r", "Runs"), ("a", "Audit"), ("u", "Us"), ("o", "servers")):
        with new_page(page):
            keys.type(f"g{key}")
        expect(page.get_by_role("heading", level=1)).to_contain_text(word)


def test_help(world: Playground, open_window: Open) -> None:
    """`?` shows the keys beside the page, which stays as it is; again, or Esc: gone."""
    page = open_window().page
    page.goto(address(world, "servers"))
    page.keyboard.press("j")
    row = page.locator("tr[data-row]").first
    help_ = page.locator("[data-help]")
    for key in ("?", "Escape"):
        page.keyboard.press("?")
        expect(help_.get_by_text("next row")).to_be_visible()
        expect(help_.locator("summary")).to_be_focused()
        page.keyboard.press(key)
        expect(help_.get_by_text("next row")).to_be_hidden()
        expect(row).to_be_focused()
    assert urlsplit(page.url).path.endswith("/servers")


def test_on_paper(world: Playground, open_window: Open) -> None:
    """Printed, a page is what it shows, without what is there to press."""
    page = open_window().page
    for path, shown in (("", "#failing tbody tr"), ("servers", "tr[data-row]")):
        page.goto(address(world, path))
        pressed = page.locator("nav a, button, input, summary, .updated")
        page.emulate_media(media="print")
        expect(page.locator(shown).last).to_be_visible()
        expect(page.locator("footer")).to_contain_text("Synapse")
        for each in pressed.all():
            expect(each).to_be_hidden()
        page.emulate_media(media="screen")


def test_on_a_phone(world: Playground, open_window: Open) -> None:
    """On a phone the list comes first: filters are folded, and work once opened."""
    page = open_window(viewport={"width": 360, "height": 740}).page
    page.goto(address(world, "servers"))
    status = page.get_by_label("Status")
    expect(status).to_be_hidden()
    expect(page.locator("tr[data-row]").first).to_be_in_viewport()
    page.get_by_text("Filter and order").click()
    status.select_option("online")
    with new_page(page):
        page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("not failing")
    page.set_viewport_size({"width": 1280, "height": 900})
    expect(status).to_be_visible()


def select(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_label(f"Select {name}", exact=True).check()


def test_runs(world: Playground, open_window: Open) -> None:
    """What is selected is told first, then asked, and its run is seen to end.

    Another one, over more of them, is cancelled before it ends.
    """
    page = open_window().page
    two = (Behaviour.HANGING, Behaviour.EXPIRED_CERTIFICATE)
    names = [world.remotes[behaviour].server_name for behaviour in two]
    for pace, button, word in (("10", "", "ended"), ("0.1", "Cancel", "cancelled")):
        page.goto(address(world, "servers?failing_for=0s"))
        all_of_page = page.get_by_label("Select all on this page")
        all_of_page.check()
        count = page.locator("tr[data-row]").count()
        expect(page.locator("main")).to_contain_text(f"{count} selected")
        if not button:
            all_of_page.uncheck()
            select(page, *names)
            expect(page.locator("main")).to_contain_text("2 selected")
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
    """A page of which the token has ended says so, and asks no more.

    So does that of a run which is under way, and what is sent. Once somebody has signed
    in again in another tab, where they are led to what they asked for, it goes on by
    itself. Who signs out is out.
    """
    user = world.client.login("admin", world.admin.password)
    window = open_window(token=user.access_token, allowed=REFUSED)
    page, other = window.page, window.context.new_page()
    # All of them: it lasts for a minute.
    names = [remote.server_name for remote in world.remotes.values()]
    run_id = world.client.start_run(destinations=names, per_second=0.1)["id"]
    page.goto(address(world, f"runs/{run_id}"))
    other.goto(address(world, server_path(world, Behaviour.DOWN)))
    expect(page.locator("#run")).to_contain_text("running")
    told = page.locator("[data-told]")
    expect(told).to_contain_text("updated")

    world.synapse.client(user).request("POST", "/_matrix/client/v3/logout")

    expect(told).to_contain_text("You are signed out")
    expect(other.locator("[data-told]")).to_contain_text("You are signed out")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with new_page(other):
        other.get_by_role("button", name="Diagnose").click()
    expect(other.locator("main")).to_contain_text("This session has ended")
    other.get_by_label("User").fill("admin")
    other.get_by_label("Password").fill(world.admin.password)
    assert asked == []
    with new_page(other):
        other.get_by_role("button", name="Sign in", exact=True).click()
    expect(told).not_to_contain_text("You are signed out")
    expect(told).to_contain_text("updated")
    with new_page(page):
        page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#run")).to_contain_text("cancelled")
    with new_page(other):
        other.get_by_role("button", name="Sign out").click()
    other.goto(address(world))
    expect(other.get_by_role("heading", level=1)).to_contain_text("Sign in")
    assert world.admin.user_id not in other.content()


def test_refused_renewal(world: Playground, open_window: Open) -> None:
    """A service that refuses to renew a session is asked once, not for ever."""
    window = open_window(allowed=REFUSED)
    page = window.page
    renewal = Renewal("client", int(time.time() * 1000) + 30_000, "spent")
    keep(world, window, "renewal", renewal.value())
    asked: list[str] = []

    def refuse(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=401, json={})

    page.route("**/session/refresh", refuse)
    page.clock.install()
    page.goto(address(world, "forget"))
    page.clock.run_for(300_000)
    # Behind all that wait for their turn.
    page.evaluate("navigator.locks.request('federation-session', () => null)")
    assert len(asked) == 1


# What a page marks, for good.
REMEMBER_MARKS = """() => {
    window.marked = [];
    new MutationObserver((records) => {
        for (const { target } of records) {
            if (target.classList.contains("changed")) marked.push(target.textContent);
        }
    }).observe(document.body, {
        attributes: true, attributeFilter: ["class"], subtree: true,
    });
}"""


def test_two_admins(world: Playground, open_window: Open) -> None:
    """What one admin does, another one sees, and is not disturbed by it.

    Focus, what is selected, and the place stay; what has changed is marked. While text
    is selected, nothing is asked. A second tab shows the same.
    """
    window = open_window(viewport={"width": 1280, "height": 400})
    page, tab = window.page, window.context.new_page()
    remote = world.remotes[Behaviour.WRONG_NAME_CERTIFICATE]
    name = remote.server_name
    page.goto(address(world))
    tab.goto(address(world, "servers"))
    row = tab.locator("tr[data-row]", has_text=name)
    row.get_by_role("checkbox").check()
    row.get_by_role("link").focus()
    heading = page.get_by_role("heading", name="Who needs you")
    heading.evaluate("each => each.scrollIntoView()")
    heading.evaluate("each => document.getSelection().selectAllChildren(each)")
    page.evaluate(REMEMBER_MARKS)
    top = heading.bounding_box()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    other = world.synapse.create_user("other", admin=True)
    second = open_window(token=other.access_token).page
    second.goto(address(world, f"servers/{quote(name, safe='')}"))
    remote.switch(Behaviour.HEALTHY)
    with new_page(second):
        second.get_by_role("button", name="Reconnect").click()
    expect(second.locator("main")).to_contain_text("Connected")

    expect(row).to_contain_text("not failing")
    expect(row.get_by_role("checkbox")).to_be_checked()
    expect(row.get_by_role("link")).to_be_focused()
    assert asked == []
    page.evaluate("document.getSelection().empty()")
    expect(page.locator("#done")).to_contain_text(other.user_id)
    assert any(other.user_id in text for text in page.evaluate("marked"))
    after = heading.bounding_box()
    assert top is not None
    assert after is not None
    assert abs(top["y"] - after["y"]) < 2


def test_hidden(world: Playground, open_window: Open) -> None:
    """In a tab that nobody looks at nothing is asked; then all is made up for."""
    window = open_window()
    page = window.page
    page.goto(address(world))
    expect(page.locator("[data-told]")).to_contain_text("updated")
    show = """value => {
        Object.defineProperty(document, "hidden", {value, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(show, True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    # Nobody else asks for both.
    seen = open_window(
        token=world.client.login("admin", world.admin.password).access_token
    )
    seen.page.goto(address(world))
    for _ in range(2):
        with seen.page.expect_request("**/changes?*"):
            pass
    assert asked == []
    with page.expect_request("**/changes?*"):
        page.evaluate(show, False)


def test_homeserver_away(world: Playground, open_window: Open) -> None:
    """A page says what is away, and goes on once it is there again, as it was.

    That is the process, or the proxy's way to it, or its database. A page that is
    opened meanwhile comes by itself.
    """
    window = open_window(
        allowed=(
            "net::ERR_",
            "status of 502",
            "status of 503",
        )
    )
    page = window.page
    page.goto(address(world))
    told = page.locator("[data-told]")
    link = page.locator("#failing a").last
    link.focus()

    world.synapse.stop()
    expect(told).to_contain_text("The homeserver does not answer")
    world.synapse.start()
    expect(told).not_to_contain_text("does not answer")

    page.route("**/changes?*", lambda route: route.fulfill(status=502, body="Bad"))
    expect(told).to_contain_text("A proxy answers HTTP 502")
    page.unroute("**/changes?*")
    expect(told).not_to_contain_text("HTTP 502")

    assert world.synapse.postgres is not None
    world.synapse.postgres.stop()
    expect(told).to_contain_text("The database of this homeserver cannot be used")
    late = window.context.new_page()
    late.goto(address(world, "servers"))
    expect(late.get_by_role("heading", level=1)).to_contain_text("database")
    world.synapse.postgres.start()
    expect(told).not_to_contain_text("database")
    expect(told).to_contain_text("updated")
    expect(late.locator("tr[data-row]").first).to_be_visible()
    expect(link).to_be_focused()
