# SPDX-License-Identifier: Apache-2.0
"""Signing in to the console with a password, and by single sign-on; and attacks on it.

Synapse, with its rate limits, stands behind nginx, and an OpenID provider beside it.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import attr
import pytest
from openid_provider import OpenIDProvider, oidc_providers
from plain_browser import Page, PlainBrowser
from real_synapse import PASSWORD, RealSynapse
from reverse_proxy import listener, reverse_proxy

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import CONSOLE
from synapse_federation_admin.playground.processes import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.nginx]

ADDRESS = "127.0.0.62"

Open = Callable[..., PlainBrowser]


@attr.s(slots=True, auto_attribs=True)
class World:
    synapse: RealSynapse
    provider: OpenIDProvider
    proxy: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    certificates = CertificateAuthority(folder)
    heard, port = free_port(), free_port(ADDRESS)
    with ExitStack() as stack:
        context = certificates.valid("127.0.0.1")
        provider = stack.enter_context(
            OpenIDProvider("127.0.0.1", free_port(), context)
        )
        synapse = stack.enter_context(
            RealSynapse(
                folder,
                certificates,
                address=ADDRESS,
                extra_config={
                    "public_baseurl": f"https://{ADDRESS}:{port}/",
                    "oidc_providers": oidc_providers(provider),
                    "rc_login": {"address": {"per_second": 0.001, "burst_count": 20}},
                },
                extra_listeners=[listener(heard)],
                environment={"SSL_CERT_FILE": str(certificates.path)},
            )
        )
        upstreams = {port: (f"http://127.0.0.1:{heard}", "")}
        stack.enter_context(
            reverse_proxy(folder / "nginx", certificates, ADDRESS, upstreams)
        )
        # Who signs in with a password.
        assert synapse.admin.password == PASSWORD
        # Whom the provider knows, too; and whom it makes.
        synapse.create_user("carol", admin=True)
        yield World(synapse, provider, f"https://{ADDRESS}:{port}")


@pytest.fixture
def open_browser(world: World) -> Iterator[Open]:
    """Opens browsers, by default behind the proxy."""
    verify = world.synapse.certificates.client_context()
    with ExitStack() as stack:
        yield lambda base=world.proxy, **more: stack.enter_context(
            PlainBrowser(base, verify, {}, **more)
        )


def with_password(browser: PlainBrowser, path: str, password: str = PASSWORD) -> Page:
    page = browser.open(path)
    return browser.send(
        page, "/session", how="password", user="admin", password=password
    )


def test_password(world: World, open_browser: Open) -> None:
    """With a password, behind TLS and without: to the page that was asked for, and out.

    With a wrong one only that is typed again. The cookie is kept to https where that
    is, and is worth nothing to the API.
    """
    for base, is_secure in ((world.proxy, True), (world.synapse.url(), False)):
        browser = open_browser(base)
        page = with_password(browser, "/servers?status=online", "wrong")
        assert page.status == 403
        assert "Invalid username or password" in page.text
        assert 'value="admin"' in page.text
        page = with_password(browser, "/servers?status=online")
        assert (page.status, page.path) == (200, "/servers?status=online")
        assert world.synapse.admin.user_id in page.text
        assert all(("Secure" in line) == is_secure for line in browser.told)
        api = f"{world.synapse.url()}/_synapse/admin/v2/federation/status"
        cookie = "; ".join(f"{n}={v}" for n, v in browser.cookies.items())
        assert browser.raw("GET", api, Cookie=cookie).status_code == 401
        page = browser.send(page, "/session/end")
        assert page.path == "/session"
        assert browser.open("/").status == 401


def by_provider(browser: PlainBrowser, page: Page) -> Page:
    """Sign in at the provider; return the page with which Synapse asks whether."""
    page = browser.follow(page, "Sign in with The <Provider>")
    return browser.send(page, "/confirm")


def test_single_sign_on(world: World, open_browser: Open) -> None:
    """By the provider: to the page that was asked for, wherever one has begun; what it
    has brought is taken once, and only in the browser in which it was asked for."""
    world.provider.user = "carol"
    for base in (world.proxy, world.synapse.url()):
        browser = open_browser(base)
        page = by_provider(browser, browser.open("/audit?limit=7"))
        link = page.link("Continue")
        assert link.startswith(f"{base}{CONSOLE}session/sso?")
        victim = open_browser(base)
        victim.open("/session")
        refused = victim.open(link)
        assert refused.status == 400
        assert "not begun in this browser" in refused.text
        page = browser.send(browser.follow(page, "Continue"), "/session")
        assert (page.status, page.path) == (200, "/audit?limit=7")
        assert f"@carol:{world.synapse.server_name}" in page.text
        again = browser.send(browser.open(link), "/session")
        assert again.status == 403
        assert "That did not work" in again.text
        page = browser.send(browser.open("/forget"), "/session/end")
        assert page.path == "/session"
    world.provider.user = "dave"
    browser = open_browser()
    page = by_provider(browser, browser.open("/"))
    page = browser.send(browser.follow(page, "Continue"), "/session")
    assert page.status == 403
    assert "no server admin" in page.text


def test_tries_count_by_address(world: World, open_browser: Open) -> None:
    """Synapse's rate limits hold for who tries passwords here, by their own address:
    not by that of the proxy."""
    attacker = open_browser(address="127.0.0.9")
    for _ in range(30):
        page = with_password(attacker, "/", "wrong")
        if page.status == 429:
            break
    assert page.status == 429
    assert re.search("Too Many Requests: try again in [0-9]+ s", page.text)
    assert with_password(attacker, "/").status == 429
    assert with_password(open_browser(), "/").status == 200


def test_paths(world: World, open_browser: Open) -> None:
    """What only looks like a path of the console is none; and leads to no API."""
    browser = open_browser()
    with_password(browser, "/")
    for base in (world.proxy, world.synapse.url()):
        for path in (
            *("//", "//servers", "/servers/", "/servers;x=1", "/;/servers", "/..;/"),
            *("/%2e%2e/%2e%2e/v1/federation/destinations", "/%2fservers", "/.%2f"),
            *("/servers/a/../../v1", "/servers%00", "/static/..%2f..%2f__init__.py"),
            *("/static/%2e%2e%2fconsole.js", "/static//etc/passwd", "/%c0%ae"),
        ):
            raw = browser.raw("GET", f"{base}{CONSOLE.rstrip('/')}{path}")
            assert raw.status_code in (301, 400, 401, 404), (path, raw.text)
            assert 'destinations":' not in raw.text
            location = raw.headers.get("Location", "/")
            assert urlsplit(location).netloc in ("", urlsplit(base).netloc)
    # Synapse answers this itself, wherever it goes: without credentials.
    raw = browser.raw("OPTIONS", f"{browser.base}{CONSOLE}")
    assert "Access-Control-Allow-Credentials" not in raw.headers
