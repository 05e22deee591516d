# SPDX-License-Identifier: Apache-2.0
"""Signing in to the console of a real Synapse whose accounts are with a service.

Synapse is configured for it as its release has it: `matrix_authentication_service`, or
before 1.149 `experimental_features: msc3861`. One homeserver with four processes is for
all tests, and so they are one file.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import attr
import httpx
import pytest
from authentication_service import ADMIN, API, DEVICE_GRANT, AuthenticationService
from browser import PATIENCE_MS, Watched, browser
from deadlines import SOON_S
from plain_browser import Page, PlainBrowser
from playwright.sync_api import Browser, expect
from real_synapse import RealSynapse
from reverse_proxy import listener, reverse_proxy

from synapse_federation_admin.cli.exits import Exit
from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import CONSOLE
from synapse_federation_admin.playground.configuration import GENERIC_WORKER, MAIN
from synapse_federation_admin.playground.processes import free_port, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.nginx]

IS_OLD = find_spec("synapse.api.auth.msc3861_delegated") is not None

ADDRESS = "127.0.0.61"
SECRET = "a-secret-of-both"
# What the other proxy asks for.
BASIC = {"Authorization": "Basic c29tZWJvZHk6ZWxzZQ=="}

TOKEN = "POST /oauth2/token"

Open = Callable[..., PlainBrowser]


@attr.s(slots=True, auto_attribs=True)
class World:
    synapse: RealSynapse
    service: AuthenticationService
    proxy: str
    # A proxy that asks for a password itself, and passes on to what does not hear it.
    other_proxy: str

    def tell(self, method: str, path: str, body: Any) -> None:
        """Tell Synapse something, as the service."""
        response = httpx.request(
            method,
            self.synapse.url() + path,
            json=body,
            headers={"Authorization": f"Bearer {SECRET}"},
            trust_env=False,
        )
        assert response.is_success, response.text

    def add_user(self, name: str) -> None:
        if IS_OLD:
            user = quote(f"@{name}:{self.synapse.server_name}", safe="")
            self.tell("PUT", f"/_synapse/admin/v2/users/{user}", {"admin": False})
        else:
            self.tell("POST", "/_synapse/mas/provision_user", {"localpart": name})

    def add_device(self, user: str, device: str) -> None:
        if IS_OLD:
            user = quote(f"@{user}:{self.synapse.server_name}", safe="")
            path = f"/_synapse/admin/v2/users/{user}/devices"
            self.tell("POST", path, {"device_id": device})
        else:
            body = {"localpart": user, "device_id": device}
            self.tell("POST", "/_synapse/mas/upsert_device", body)

    def remove_device(self, user: str, device: str) -> None:
        if IS_OLD:
            user = quote(f"@{user}:{self.synapse.server_name}", safe="")
            path = f"/_synapse/admin/v2/users/{user}/devices/{quote(device)}"
            self.tell("DELETE", path, {})
        else:
            body = {"localpart": user, "device_id": device}
            self.tell("POST", "/_synapse/mas/delete_device", body)


def delegated(service: AuthenticationService) -> dict[str, Any]:
    """Return what homeserver.yaml has of the service."""
    if not IS_OLD:
        keys = {"enabled": True, "endpoint": service.url, "secret": SECRET}
        return {"matrix_authentication_service": keys}
    keys = {
        "enabled": True,
        "issuer": f"{service.url}/",
        "client_id": "0000000000000000000SYNAPSE",
        "client_auth_method": "client_secret_post",
        "client_secret": SECRET,
        "admin_token": SECRET,
    }
    return {"experimental_features": {"msc3861": keys}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    certificates = CertificateAuthority(folder)
    heard, port, other_port = free_port(), free_port(ADDRESS), free_port(ADDRESS)
    password = folder / "password"
    password.write_text("somebody:{PLAIN}else\n")
    with ExitStack() as stack:
        service = stack.enter_context(
            AuthenticationService("127.0.0.1", free_port(), SECRET)
        )
        synapse = stack.enter_context(
            RealSynapse(
                folder,
                certificates,
                address=ADDRESS,
                workers=True,
                extra_config={
                    "public_baseurl": f"https://{ADDRESS}:{port}/",
                    "password_config": {"enabled": False},
                    "rc_login": {"address": {"per_second": 0.001, "burst_count": 60}},
                    **delegated(service),
                },
                extra_listeners=[listener(heard)],
            )
        )
        basic = f'auth_basic "Admins"; auth_basic_user_file {password};'
        upstreams = {
            port: (f"http://127.0.0.1:{heard}", ""),
            other_port: (synapse.url(), basic),
        }
        stack.enter_context(
            reverse_proxy(folder / "nginx", certificates, ADDRESS, upstreams)
        )
        addresses = (f"https://{ADDRESS}:{each}" for each in (port, other_port))
        world = World(synapse, service, *addresses)
        for name in ("admin", "bob"):
            world.add_user(name)
        service.homeserver = world
        yield world


@pytest.fixture
def open_browser(world: World) -> Iterator[Open]:
    """Opens browsers, by default behind the proxy."""
    verify = world.synapse.certificates.client_context()
    service = world.service
    with ExitStack() as stack:
        yield lambda base=world.proxy, address=None, **headers: stack.enter_context(
            PlainBrowser(base, verify, headers, address)
        )
    service.user, service.lifetime_s, service.fails_with = "admin", 300, None
    service.withheld.clear()
    service.instead.clear()


def begin(browser: PlainBrowser, path: str) -> Page:
    """Ask for a page, and begin to sign in; return where that leads."""
    page = browser.open(path)
    assert page.status == 401
    assert 'type="password" autocomplete="current' not in page.text
    return browser.send(page, "/session/begin")


def consent(browser: PlainBrowser, page: Page, answer: str = "yes") -> Page:
    """Follow to the service, and allow it: until the form that goes on."""
    page = browser.follow(page, "Go to the authentication service")
    return browser.send(page, "/consent", answer=answer)


def sign_in(browser: PlainBrowser, path: str = "/") -> Page:
    """Sign in; return the page to which that leads."""
    return browser.send(consent(browser, begin(browser, path)), "/session/back")


def csrf(page: Page) -> str:
    return re.findall('name="csrf" value="([0-9a-f]+)"', page.text)[0]


def redirect_uri(page: Page) -> str:
    query = urlsplit(page.link("Go to the authentication service")).query
    return parse_qs(query)["redirect_uri"][0]


def test_code_behind_a_proxy(world: World, open_browser: Open) -> None:
    """Behind TLS, with a code: to the page that was asked for. Two tabs do it at once.

    A code is taken once, and only in the browser in which it was asked for.
    """
    browser = open_browser()
    tabs = {path: begin(browser, path) for path in ("/forget", "/audit?limit=7")}
    for page in tabs.values():
        assert redirect_uri(page) == f"{world.proxy}{CONSOLE}session/back"
    came_back = {path: consent(browser, page) for path, page in tabs.items()}
    assert len(world.service.clients) == 1
    (client,) = world.service.clients.values()
    assert client["application_type"] == "web"

    stranger = open_browser()
    stranger.open("/session")
    refused = stranger.open(came_back["/forget"].url)
    assert refused.status == 400
    assert "not begun in this browser" in refused.text

    for path in tabs:
        # Loaded again, for it has the token of the form of another session by now.
        page = browser.open(came_back[path].path)
        page = browser.send(page, "/session/back")
        assert (page.status, page.path) == (200, path), page.text
        assert f"@admin:{world.synapse.server_name}" in page.text
    # What the first tab has brought is not left behind.
    assert [grant.user for grant in world.service.ended] == ["admin"]
    assert browser.open("/").status == 200
    again = browser.send(browser.open(came_back["/forget"].path), "/session/back")
    assert again.status == 400
    assert "invalid_grant" in again.text
    for line in browser.told:
        assert {"Secure", "HttpOnly", "SameSite=lax"} <= set(line.split("; ")), line
        assert f"Path={CONSOLE}" in line

    denied = open_browser()
    page = consent(denied, begin(denied, "/"), "no")
    assert page.status == 400
    assert "access_denied" in page.text or "&lt;b&gt;No" in page.text
    assert "<b>No" not in page.text


@pytest.mark.parametrize("process", [MAIN, GENERIC_WORKER])
def test_over_http_on_localhost(world: World, open_browser: Open, process: str) -> None:
    """Over http on the machine itself, as through an SSH tunnel: with a code, too.

    At a worker as at the main process; the token is renewed there, and ended.
    """
    url = world.synapse.url(process)
    browser = open_browser(url)
    page = begin(browser, "/forget")
    assert redirect_uri(page) == f"{url}{CONSOLE}session/back"
    page = browser.send(consent(browser, page), "/session/back")
    assert (page.status, page.path) == (200, "/forget")
    assert f'answered by <span class="name">{process}<' in page.text
    assert browser.post("/session/refresh", {"csrf": csrf(page)}).status == 200
    page = browser.open("/forget")
    assert page.status == 200
    assert browser.told
    assert not any("Secure" in line for line in browser.told)
    page = browser.send(page, "/session/end")
    assert page.path == "/session"


def test_a_proxy_that_synapse_does_not_hear(world: World, open_browser: Open) -> None:
    """Without `x_forwarded` the page says what is wrong, and signing in goes on: with a
    code that is typed in at the service. What the proxy asks for itself stays there."""
    browser = open_browser(world.other_proxy)
    assert browser.open("/").status == 401
    browser = open_browser(world.other_proxy, **BASIC)
    page = browser.open("/forget")
    assert page.status == 401
    assert "x_forwarded: true" in page.text
    page = browser.send(page, "/session/begin")
    for name in ("authorization_pending", "slow_down"):
        world.service.says_next.append(name)
        page = browser.send(page, "/session/device")
        assert "type this code" in page.text
    link = page.link("Open the authentication service")
    elsewhere = open_browser()
    elsewhere.send(elsewhere.open(link), "/device_consent", answer="yes")
    page = browser.send(page, "/session/device")
    assert (page.status, page.path) == (200, "/forget"), page.text
    clients = list(world.service.clients.values())
    assert clients[-1]["grant_types"] == [DEVICE_GRANT, "refresh_token"]
    assert "x_forwarded" not in open_browser().open("/").text


@pytest.mark.parametrize("said", ["expired_token", "access_denied"])
def test_device_refused(world: World, open_browser: Open, said: str) -> None:
    """A code that is too old, or that was refused, is told; and one can begin anew."""
    browser = open_browser(world.other_proxy, **BASIC)
    page = begin(browser, "/forget")
    world.service.says_next.append(said)
    page = browser.send(page, "/session/device")
    assert page.status == 400
    assert said in page.text
    assert "type this code" in browser.send(page, "/session/begin").text


def test_tries_count_by_address(world: World, open_browser: Open) -> None:
    """Who has not signed in has the service do no more than Synapse's own limit for
    signing in allows: by their own address, not by that of the proxy."""
    browser = open_browser(address="127.0.0.9")
    page = browser.open("/")
    known = len(world.service.clients)
    for _ in range(70):
        answer = browser.send(page, "/session/begin")
        if answer.status == 429:
            break
    assert answer.status == 429
    assert re.search("Too Many Requests: try again in [0-9]+ s", answer.text)
    assert len(world.service.clients) <= known + 1
    assert begin(open_browser(), "/").status == 200


def test_scope(world: World, open_browser: Open) -> None:
    """Who cannot be an admin is told so: by the service, or where that gives a token
    without the scope, by the console. A token without that of the API is not kept, and
    leads no way round."""
    service = world.service
    service.user = "bob"
    browser = open_browser()
    page = browser.follow(begin(browser, "/"), "Go to the authentication service")
    assert f"scope '{ADMIN}' not allowed" in page.tree.text_content()

    service.withheld = {ADMIN}
    service.admins.add("bob")
    page = sign_in(browser)
    service.admins.remove("bob")
    assert page.status == 403
    assert ADMIN in page.text
    assert browser.send(page, "/session/end").path == "/session"

    service.withheld = {API, ADMIN}
    service.user = "admin"
    ended = len(service.ended)
    page = sign_in(browser)
    assert page.status == 401
    assert "grant" in page.text
    assert "That did not work" in page.text
    assert not any("mat_" in value for value in browser.cookies.values())
    assert len(service.ended) == ended + 1


def test_renewed(world: World, open_browser: Open) -> None:
    """The access token is renewed before it ends, for the same forms; a refresh token
    that was spent is worth nothing, and ends no session that goes on."""
    browser = open_browser()
    page = sign_in(browser)
    assert "data-renew=" in page.text
    form = {"csrf": csrf(page)}
    before = browser.cookies
    assert browser.post("/session/refresh", {}).status == 403
    renewed = browser.post("/session/refresh", form)
    assert renewed.status == 200
    assert browser.cookies.keys() == before.keys()
    assert all(browser.cookies[name] != before[name] for name in before)
    page = browser.open("/")
    assert (page.status, csrf(page)) == (200, form["csrf"])

    # Who has stolen both cookies before that has nothing by them.
    cookie = "; ".join(f"{name}={value}" for name, value in before.items())
    thief = open_browser()
    assert thief.post("/session/refresh", form, Cookie=cookie).status == 401
    page = browser.open("/")
    assert (page.status, csrf(page)) == (200, form["csrf"])


def test_answers_that_are_none(world: World, open_browser: Open) -> None:
    """What the service answers that is of no use is its fault, and none of ours."""
    instead = world.service.instead
    good = {"access_token": "a", "expires_in": 300, "refresh_token": "r"}
    browser = open_browser()
    for wrong in (
        *({"error": ["slow_down"]}, {"error": {}}, {"access_token": "a b\r\n"}),
        *({}, [], {"access_token": 1}, {"error": 1, "error_description": []}),
    ):
        page = consent(browser, begin(browser, "/"))
        instead["/oauth2/token"] = wrong
        page = browser.send(page, "/session/back")
        assert page.status == 400, wrong
        assert "refuses this" in page.text
        instead.clear()
    form = {"csrf": csrf(sign_in(browser))}
    for more in ({"expires_in": "x"}, {"expires_in": -1}, {"refresh_token": 7}):
        instead["/oauth2/token"] = {**good, **more}
        assert browser.post("/session/refresh", form).status == 200, more
    # What a browser just keeps gets through the proxy, too.
    for length, status in ((4000, 200), (4100, 400)):
        instead["/oauth2/token"] = {**good, "access_token": "a" * length}
        assert browser.post("/session/refresh", form).status == status
    instead["/oauth2/device"] = {**good, "verification_uri": "javascript:x"}
    page = begin(open_browser(world.other_proxy, **BASIC), "/")
    assert page.status == 400
    assert "javascript:" not in page.text


def test_away(world: World, open_browser: Open) -> None:
    """While the service is away every page says so, and looks again; the session stays,
    also where one wants to sign out, for it has to be ended there."""
    browser = open_browser()
    page = sign_in(browser, "/forget")
    form = {"csrf": csrf(page)}
    kept = browser.cookies
    # What Synapse knows of a token it keeps for two minutes.
    assert browser.post("/session/refresh", form).status == 200
    kept = browser.cookies
    world.service.fails_with = 503
    page = browser.open("/servers")
    assert page.status == 503
    assert "who is signed in stays so" in page.text
    assert "data-retry" in page.text
    for world.service.fails_with in (429, 503):
        assert browser.post("/session/refresh", form).status == 503
        assert browser.post("/session/end", form).status == 503
    assert browser.cookies == kept
    world.service.fails_with = None
    assert browser.open("/servers").status == 200

    # In the midst of signing in: what was begun can go on.
    other = open_browser()
    page = consent(other, begin(other, "/forget"))
    world.service.fails_with = 503
    failed = other.send(page, "/session/back")
    assert failed.status == 503
    assert "data-retry" not in failed.text
    world.service.fails_with = None
    assert other.send(page, "/session/back").path == "/forget"


def test_ended(world: World, open_browser: Open) -> None:
    """Who comes after the access token has ended can sign in; the script renews it, and
    leads to what was asked for."""
    world.service.lifetime_s = 1
    browser = open_browser()
    page = browser.send(consent(browser, begin(browser, "/forget")), "/session/back")
    asked = "/servers?status=online"
    wait_until(lambda: browser.open(asked).status == 401, "the token to end", 60)
    page = browser.open(asked)
    assert "Sign in at the authentication service" in page.text
    assert f'data-back="{CONSOLE.rstrip("/")}{asked}"' in page.text
    world.service.lifetime_s = 300
    assert browser.post("/session/refresh", {"csrf": csrf(page)}).status == 200
    page = browser.open(asked)
    assert page.status == 200
    assert "data-back" not in page.text


def test_signing_out(world: World, open_browser: Open) -> None:
    """Signing out ends the session at the service; of what was pasted nothing ends."""
    browser, other = open_browser(), open_browser()
    page = sign_in(browser)
    token = next(reversed(world.service.access))
    ended = len(world.service.ended)
    pasted = other.send(other.open("/forget"), "/session", how="token", token=token)
    assert (pasted.status, pasted.path) == (200, "/forget")
    other.send(pasted, "/session/end")
    assert len(world.service.ended) == ended
    assert browser.open("/").status == 200
    page = browser.send(page, "/session/end")
    assert page.path == "/session"
    assert len(world.service.ended) == ended + 1
    assert browser.open("/").status == 401


class CommandLine:
    """The command line at the homeserver, as somebody without a terminal runs it."""

    def __init__(self, world: World, home: Path) -> None:
        self._command = [sys.executable, "-m", "synapse_federation_admin.cli"]
        kept = {
            name: value for name, value in os.environ.items() if "ADMIN" not in name
        }
        url = world.synapse.url()
        self._environment = {**kept, "HOME": str(home), "FEDERATION_ADMIN_URL": url}
        self.kept = home / ".config/synapse-federation-admin/login.json"

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int = 0) -> str:
        return self.end(self.begin(*arguments), status)

    @staticmethod
    def end(process: "subprocess.Popen[str]", status: int = 0) -> str:
        """Return all that it said, once it has ended so."""
        said = "".join(process.communicate(timeout=2 * SOON_S))
        assert process.returncode == status, said
        return said

    def log_in(
        self, browser: PlainBrowser, answer: str = "yes"
    ) -> "subprocess.Popen[str]":
        """Begin to log in, and answer what the service asks in a browser."""
        process = self.begin("login")
        assert process.stderr is not None
        link = next(e for e in process.stderr if e.startswith("Or open "))
        page = browser.open(link.removeprefix("Or open ").strip())
        browser.send(page, "/device_consent", answer=answer)
        return process


def test_command_line(world: World, open_browser: Open, tmp_path: Path) -> None:
    """`login` of the command line gives a code for a browser. Its token is renewed by
    one of the commands that come at once; `logout` ends it at the service."""
    service, browser = world.service, open_browser()
    service.interval_s = 1
    here = CommandLine(world, tmp_path)
    ended, respent = len(service.ended), service.respent

    assert "refused" in here.end(here.log_in(browser, "no"), Exit.NOT_ALLOWED)
    service.withheld = {ADMIN}
    assert "server admin" in here.end(here.log_in(browser), Exit.NOT_ALLOWED)
    assert len(service.ended) == ended + 1
    assert not here.kept.exists()
    service.withheld = set()

    service.says_next.append("authorization_pending")
    said = here.end(here.log_in(browser))
    assert f"Logged in as @admin:{world.synapse.server_name}" in said
    assert here.kept.stat().st_mode & 0o777 == 0o600
    assert '"destinations"' in here.run("list", "-o", "json")
    asked = service.asked.count(TOKEN)
    for number, commands in enumerate((("status", "status"), ("export",)), 1):
        kept = {**json.loads(here.kept.read_text()), "access_token": "mat_has_ended"}
        here.kept.write_text(json.dumps(kept))
        for process in [here.begin(command) for command in commands]:
            here.end(process)
        assert service.asked.count(TOKEN) == asked + number
    assert service.respent == respent

    here.run("logout")
    assert not here.kept.exists()
    assert len(service.ended) == ended + 2
    assert "no access token" in here.run("list", status=Exit.NOT_ALLOWED)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with browser() as chromium:
        yield chromium


@pytest.fixture
def window(world: World, chromium: Browser) -> Iterator[Watched]:
    """A real browser's window, in which nothing goes wrong but what a test allows."""
    window = Watched(chromium, world.synapse.url())
    # What is not there for who asks: the browser writes it to its console.
    window.allowed = ("status of 401", "status of 503")
    yield window
    window.close()
    world.service.lifetime_s, world.service.fails_with = 300, None
    # One is led to the service.
    assert [f for f in window.faults if world.service.url not in f] == []


def click_through(world: World, window: Watched, path: str) -> None:
    """Sign in."""
    page = window.page
    page.goto(f"{world.synapse.url()}{CONSOLE.rstrip('/')}{path}")
    page.get_by_role("button", name="authentication service").click()
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("header")).to_contain_text("@admin:")


@pytest.mark.browser
def test_two_tabs(world: World, window: Watched) -> None:
    """Of two tabs one spends the refresh token, once, and both go on."""
    service = world.service
    asked, respent = service.asked.count(TOKEN), service.respent
    service.lifetime_s = 80
    window.context.clock.install()
    click_through(world, window, "/forget")
    service.lifetime_s = 300
    tabs = [window.page, window.context.new_page()]
    tabs[1].goto(tabs[0].url)
    for _ in range(4):
        for tab in tabs:
            tab.clock.run_for(16_000)
        for tab in tabs:
            tab.evaluate("navigator.locks.request('federation-session', () => {})")
    # For the code, and to renew.
    assert service.asked.count(TOKEN) >= asked + 2
    assert service.respent == respent
    for tab in tabs:
        tab.reload()
        expect(tab.locator("header")).to_contain_text("@admin:")


@pytest.mark.browser
def test_comes_back_by_itself(world: World, window: Watched) -> None:
    """Who comes after the access token has ended, while the service is away, is told
    so, and is let in once it is there again."""
    world.service.lifetime_s = 1
    page = window.page
    page.goto(f"{world.synapse.url()}{CONSOLE}forget")
    window.context.route("**/session/refresh", lambda route: route.abort())
    window.allowed += ("ERR_FAILED",)
    page.get_by_role("button", name="authentication service").click()
    page.get_by_role("button", name="Continue").click()
    page.wait_for_url("**/forget")
    wait_until(
        lambda: page.reload().status == 401,  # type: ignore[union-attr]
        "the token to end",
        60,
    )
    world.service.fails_with = 503
    window.context.unroute("**/session/refresh")
    page.reload()
    expect(page.locator("[data-told]")).to_contain_text("does not answer")
    world.service.fails_with, world.service.lifetime_s = None, 300
    expect(page.locator("header")).to_contain_text("@admin:")
    assert page.url.endswith("/forget")
