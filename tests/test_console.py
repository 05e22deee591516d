# SPDX-License-Identifier: Apache-2.0
"""The console: who comes in, what each page says to whom, with which headers."""

import re
from pathlib import Path
from sqlite3 import OperationalError
from typing import Any
from unittest import mock

from console_case import CONSOLE, COOKIE, ID, ConsoleTestCase
from module_case import V2
from synapse.module_api.errors import SynapseError
from twisted.enterprise.adbapi import ConnectionLost

from synapse_federation_admin import __version__, limits
from synapse_federation_admin.api import ROUTES as API_ROUTES
from synapse_federation_admin.console import ROUTES, render
from synapse_federation_admin.console.cookie import (
    Origin,
    Renewal,
    Session,
    cookie_name,
)
from synapse_federation_admin.console.visit import Visit
from synapse_federation_admin.homeserver.features import Feature, Features
from synapse_federation_admin.homeserver.process import SYNAPSE_VERSION
from synapse_federation_admin.homeserver.sessions import Sessions

PAGES = [re.sub("<[a-z_]+>", "a", r.path) for r in ROUTES if r.method == "GET"]
CHANGES = [re.sub("<[a-z_]+>", "a", r.path) for r in ROUTES if r.method == "POST"]
OPEN = {r.path for r in ROUTES if r.opens}

OTHER_ID = "b" * 22

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def test_no_files() -> None:
    """Where no file can be opened any more, there are pages all the same."""
    render._environment.cache_clear()
    renderer = render.Renderer()
    with mock.patch.multiple("io", open=None), mock.patch("builtins.open", None):
        renderer.compile()


def test_everything_of_the_api() -> None:
    """The pages ask for everything that the API gives, but its own description."""
    files = Path(render.__file__).with_name("pages").glob("*.py")
    pages = "".join(path.read_text() for path in files)
    handlers = {route.handler.partition(".")[2] for route in API_ROUTES}
    shown = {name for name in handlers if f'"{name}"' in pages}
    asked = re.findall(r'(?:ask|ask_if_on|operation)\(\s*"(\w+)"', pages)
    assert set(asked) <= handlers
    # What v1 lists, v2 lists; the rooms of a server are those that are shared with it.
    v1 = {"list_destinations_v1", "get_destination_v1", "list_rooms_v1"}
    assert handlers - shown == {"get_openapi", *v1}


def test_renewal_cookie() -> None:
    """What renews a session comes back from its cookie; what is none of ours, not."""
    for renewal in (Renewal("a~b", 1, "c~;é"), Renewal("", 0, "")):
        assert Renewal.parse(renewal.value()) == renewal
    for wrong in ("", "a~b", "a~1~b~c", "a~-1~b", f"a~{'9' * 5000}~b"):
        assert Renewal.parse(wrong) is None


def test_signature() -> None:
    """What a session signs holds for it alone, also when somebody signs in, twice."""
    before = Session.new()
    after = before.signed_in(Origin.SERVICE, "a")
    again = after.signed_in(Origin.SERVICE, "b")
    signed, *later = (each.sign(b"s", "state", "x") for each in (before, after, again))
    assert later == [signed, signed]
    assert Session.new().sign(b"s", "state", "x") != signed


def test_names() -> None:
    """Homeservers of one host, whose cookies browsers do not tell apart by the port,
    have cookies of their own."""
    names = {
        cookie_name(server_name, purpose)
        for server_name in ("a.example", "a.example:8448", "a.example:8449")
        for purpose in ("session", "renewal")
    }
    assert len(names) == 6


class AccessTestCase(ConsoleTestCase):
    """Walks over the table of pages, so that a new one cannot be forgotten."""

    def test_pages(self) -> None:
        """Every page: 401 without a session, or with one that ended, and a way to sign
        in and back; 403 for who is no admin; for an admin 200, 303, or 404."""
        for path in sorted(set(PAGES) - OPEN):
            for token in (None, "", "syt_ended"):
                channel = self.visit("GET", path, token)
                self.assertEqual(channel.code, 401, (path, channel.result))
                self.assertIn(f'name="next" value="{path}"', channel.text_body)
                self.assertIn('type="password"', channel.text_body)
                for told in ("Synapse 1.", "everything is on", " off:"):
                    self.assertNotIn(told, channel.text_body)
            channel = self.visit("GET", path, self.user_token)
            self.assertEqual(channel.code, 403, (path, channel.result))
            self.assertIn("no server admin", channel.text_body)
            self.assertNotIn("Synapse 1.", channel.text_body)
            channel = self.visit("GET", path, self.admin_token)
            self.assertIn(channel.code, (200, 303, 404), (path, channel.result))
            if b"<html" in channel.result.get("body", b""):
                self.assertIn("@admin:test", channel.text_body)
                self.assertIn("Synapse 1.", channel.text_body)
        for path in OPEN & set(PAGES):
            self.assertIn(self.visit("GET", path).code, (200, 400), path)

    def test_changes(self) -> None:
        """Every change is refused without the form's token, with that of another
        session, and from another site: before anything else is looked at."""
        token = self.form_token(self.admin_token)
        others = self.form_token(self.admin_token, OTHER_ID)
        self.assertNotEqual(token, others)
        for path in CHANGES:
            for form in ({}, {"csrf": ""}, {"csrf": "é"}, {"csrf": others}):
                channel = self.visit("POST", path, self.admin_token, form)
                self.assertEqual(channel.code, 403, (path, channel.result))
                self.assertIn("Nothing was changed", channel.text_body)
            for site in ("cross-site", "same-site", "none", ""):
                headers = [("Sec-Fetch-Site", site)]
                form = {"csrf": token}
                channel = self.visit("POST", path, self.admin_token, form, headers)
                self.assertEqual(channel.code, 403, (path, site, channel.result))
            for origin in ("https://evil.example", "http://test:8008", "x", "http://["):
                headers = [("Origin", origin), ("Host", "test")]
                channel = self.visit("POST", path, self.admin_token, form, headers)
                self.assertEqual(channel.code, 403, (path, origin, channel.result))
                self.assertIsNone(self.kept(channel))
            channel = self.visit("POST", path, form=form)
            self.assertEqual(channel.code, 403, (path, channel.result))
            self.assertIn("has to keep cookies", channel.text_body)
            # It may have one that it has not sent, as to a form of another site.
            self.assertIsNone(self.kept(channel))

    def test_address_of_a_form(self) -> None:
        """Opened by itself, it leads to its page; other methods are refused there."""
        for path, page in (
            ("/servers/a.example/diagnose", "/servers/a.example"),
            ("/runs/7/cancel", "/runs/7"),
            ("/session/end", "/"),
        ):
            channel = self.visit("GET", path, self.admin_token)
            self.assertEqual(channel.code, 303, channel.result)
            location = channel.headers.getRawHeaders("Location")
            self.assertEqual(location, [f"/_synapse/admin/federation{page}"])
        for path in {*PAGES, *CHANGES}:
            for method in ("PUT", "DELETE", "PATCH", "TRACE", "X"):
                channel = self.visit(method, path, self.admin_token)
                self.assertEqual(channel.code, 405, (method, path, channel.result))

    def test_own_origin(self) -> None:
        """Without Sec-Fetch-Site, as over http, a form of ours comes without an origin,
        or with that of the console: whatever port a proxy adds."""
        form = {"csrf": self.form_token("")}
        for origin, host in (
            *(("null", "test"), ("http://test", "test"), ("https://TEST", "test:443")),
            *(("https://test:8448", "test:8448"), ("http://[::1]:80", "[::1]")),
        ):
            headers = [("Origin", origin), ("Host", host)]
            channel = self.visit("POST", "/session", "", form, headers)
            # It is no access token; but it was looked at.
            self.assertEqual(channel.code, 400, (origin, channel.result))

    def test_changes_need_an_admin(self) -> None:
        """Every change: 401 without a session, 403 for who is no admin."""
        for path in sorted(set(CHANGES) - OPEN):
            for token, status in (
                ("", 401),
                ("syt_ended", 401),
                (self.user_token, 403),
            ):
                self.assertEqual(self.send(path, token).code, status, path)

    def test_headers(self) -> None:
        """Every answer has the headers, whatever it is, and none of CORS."""
        targets = [*(("GET", path) for path in PAGES), ("GET", "/no/such/page")]
        targets += [*(("POST", path) for path in CHANGES), ("GET", ""), ("PUT", "/")]
        for method, path in [*targets, ("GET", "/static/x.css")]:
            for token in (None, self.admin_token):
                origin = [("Origin", "https://evil.example")]
                channel = self.visit(method, path, token, headers=origin)
                (kept,) = channel.headers.getRawHeaders("Cache-Control")
                self.assertIn("no-store", kept, (method, path))
                for name, value in HEADERS.items():
                    found = channel.headers.getRawHeaders(name)
                    self.assertEqual(found, [value], (method, path, name))
                names = [name.lower() for name, _ in channel.headers.getAllRawHeaders()]
                self.assertFalse([n for n in names if n.startswith(b"access-control")])

    def test_nothing_inline(self) -> None:
        """Nothing on a page is a script or a style of its own, or of another host."""
        for path in PAGES:
            body = self.visit("GET", path, self.admin_token).result.get("body", b"")
            body = body.decode()
            self.assertFalse(re.findall(r"<style|\sstyle=|\son\w+=|javascript:", body))
            self.assertFalse(
                re.findall(r'(?:src|<link[^>]* href)="(?:https?:|//)', body)
            )
            for script in re.findall("<script[^>]*>", body):
                self.assertIn(f'src="{CONSOLE}/static/', script)

    def test_static(self) -> None:
        """Files have a name that changes with them, and are kept for ever; together
        they have at most 40 KB."""
        body = self.visit("GET", "/session").text_body
        total = 0
        for path in set(re.findall(f'"{CONSOLE}(/static/[^"]+)"', body)):
            channel = self.visit("GET", path)
            self.assertEqual(channel.code, 200)
            (kept,) = channel.headers.getRawHeaders("Cache-Control")
            self.assertEqual(kept, "public, max-age=31536000, immutable")
            total += len(channel.result["body"])
        self.assertTrue(10_000 < total <= 40_000, total)
        # One whose requests come all at once has them answered one after the other.
        channel = self.make_request(
            "GET", f"{CONSOLE}/static/none", shorthand=False, await_result=False
        )
        self.assertFalse(channel.is_finished())
        channel.await_result()
        self.assertEqual(channel.code, 404)

    def test_cookie_is_for_pages_only(self) -> None:
        """The cookie is worth nothing to the API, and a page takes nothing else: no
        Authorization, no token in the query."""
        cookie = f"{COOKIE}={Session(ID, Origin.PASTED, self.admin_token).value()}"
        channel = self.make_request(
            "GET", f"{V2}/status", custom_headers=[("Cookie", cookie)]
        )
        self.assertEqual(channel.code, 401)
        bearer = [("Authorization", f"Bearer {self.admin_token}")]
        self.assertEqual(self.visit("GET", "/", headers=bearer).code, 401)
        # A proxy's own.
        basic = [("Authorization", "Basic YTpi")]
        channel = self.visit("GET", "/", self.admin_token, headers=basic)
        self.assertEqual(channel.code, 200)
        # Twisted parts parameters at ";", too.
        for name in ("access_token", "a=b;access_token", "%61ccess_token"):
            for token in (None, self.admin_token):
                path = f"/?{name}={self.admin_token}"
                channel = self.visit("GET", path, token)
                self.assertEqual(channel.code, 400, name)
                self.assertNotIn(self.admin_token, channel.text_body)
        fields = {"access_token": self.admin_token}
        self.assertEqual(self.send("/runs/7/cancel", **fields).code, 400)

    def test_cookies_that_are_none(self) -> None:
        """What is no cookie of ours, or is there twice, is no session, and no fault."""
        for value in (
            *("", "x", f"{ID}.z.t", "é", f"{ID}.p", "a.p.t", "%00.p.%0a"),
            *(f"{ID}.p.%C3%A9", f"{ID}.p.a%20b", f"{ID}.p.%0A"),
        ):
            headers = [("Cookie", f"{COOKIE}={value}")]
            self.assertEqual(self.visit("GET", "/", headers=headers).code, 401, value)
        good = f"{COOKIE}={Session(ID, Origin.PASTED, self.admin_token).value()}"
        renewal = cookie_name("test", "renewal")
        for cookie, status in (
            *((f"x=1; {good}; y", 200), (f"{good}; {COOKIE}=x", 401), ("=", 401)),
            *((f"{good}{'a' * 6000}", 401), (good.replace("=", '="') + '"', 401)),
            *((good.upper(), 401), ("; ".join(f"c{n}=1" for n in range(500)), 401)),
            *((f"{renewal}={value}; {good}", 200) for value in ("~1~", "~" * 900)),
        ):
            channel = self.visit("GET", "/servers", headers=[("Cookie", cookie)])
            self.assertEqual(channel.code, status, cookie[:200])
        injected = self.visit("GET", "/", "a\r\nX-Evil: 1")
        self.assertEqual(injected.code, 401)


class FaultsTestCase(ConsoleTestCase):
    """What cannot be answered."""

    def test_too_much(self) -> None:
        """Too many fields, and a format that is none, are the caller's fault."""
        for path in (f"/servers?{'a=&' * 2001}a=", "/servers/export?format=xml"):
            channel = self.visit("GET", path, self.admin_token)
            self.assertEqual(channel.code, 400, channel.result)
            self.assertIn("This cannot be done", channel.text_body)

    def test_fails(self) -> None:
        """A database that is away is 503, and looked for again; a fault of ours is 500.
        What has happened is in the log, not on the page."""
        for error, status, text in (
            (OperationalError("database is locked"), 503, "cannot be used"),
            (ConnectionLost(), 503, "cannot be used"),
            (ValueError("database is locked"), 500, "fault of this module"),
        ):
            for target in (
                "homeserver.process.Process.require_admin",
                "console.pages.overview.overview",
            ):
                with mock.patch(
                    f"synapse_federation_admin.{target}", side_effect=error
                ):
                    channel = self.visit("GET", "/", self.admin_token)
                self.assertEqual(channel.code, status, target)
                self.assertIn(text, channel.text_body)
                self.assertNotIn("is locked", channel.text_body)
                for retries in ("data-retry", "looks again by itself"):
                    self.assertEqual(retries in channel.text_body, status == 503)

    def test_form_fails(self) -> None:
        """So it is told where a form of any page fails, which is not sent again; and
        what has failed as an operation of the API is told in its words."""
        for error, status, *texts in (
            (OperationalError("is locked"), 503, "The database", "until it can"),
            (ValueError("is locked"), 500, "This page has failed", "this module"),
            (SynapseError(503, "<b> away"), 503, "does not work", "&lt;b&gt; away"),
            (SynapseError(500, "<b> fails"), 500, "has failed", "&lt;b&gt; fails"),
        ):
            for path in CHANGES:
                if path.startswith("/session"):
                    continue
                fails = mock.MagicMock(side_effect=error)
                fails.handler.side_effect = error
                with mock.patch.object(Visit, "operation", return_value=fails):
                    channel = self.send(path, self.admin_token, longest="1h")
                told = (path, channel.code, channel.text_body)
                self.assertEqual(channel.code, status, told)
                for text in texts:
                    self.assertIn(text, channel.text_body, told)
                for text in ("is locked", "data-retry", "by itself"):
                    self.assertNotIn(text, channel.text_body, told)
                self.assertIn("Try again", channel.text_body, told)

    def test_foot(self) -> None:
        """The foot of each page has versions, the process, and what is off, and why."""

        def reason(_: Features, feature: Feature) -> str | None:
            return "a <name> is missing" if feature is Feature.METRICS else None

        with mock.patch.object(Features, "reason", reason):
            for path in ("/", "/servers", "/us", "/audit", "/runs"):
                page = self.visit("GET", path, self.admin_token).text_body
                foot = page[page.index("<footer>") :]
                for told in (
                    f"-admin {__version__} · Synapse {SYNAPSE_VERSION}",
                    'answered by <span class="name">main</span>',
                    f"1 off: {Feature.METRICS.value}<",
                    "a &lt;name&gt; is missing",
                ):
                    self.assertIn(told, foot, path)

    def test_compiled_in_a_thread(self) -> None:
        """Templates are compiled before the first page, and not in the reactor."""
        calls: list[bool] = []

        async def defer(_: Any, func: Any) -> None:
            calls.append(True)
            func()

        environment = render._environment()
        assert environment.cache is not None
        environment.cache.clear()
        with (
            mock.patch("synapse.module_api.ModuleApi.defer_to_thread", defer),
            mock.patch.object(
                environment, "compile", side_effect=environment.compile
            ) as compiling,
        ):
            self.assertEqual(self.visit("GET", "/session").code, 200)
            count = compiling.call_count
            self.assertEqual(count, len(environment.list_templates()))
            self.assertEqual(self.visit("GET", "/", self.admin_token).code, 200)
            self.assertEqual(compiling.call_count, count)
        self.assertEqual(calls, [True])


class SigningInTestCase(ConsoleTestCase):
    """Signing in and out, at the homeserver itself."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.register_user("alice", "secret", admin=True)

    def test_signed_out_twice(self) -> None:
        """One can sign out in two tabs at once. More: in test_e2e_single_sign_on."""
        fields = {"how": "password", "user": "alice", "password": "secret"}
        session = self.kept(self.send("/session", **fields))
        assert session is not None
        form = {"csrf": self.form_token(session.token)}
        for _ in range(2):
            channel = self.visit(
                "POST", "/session/end", session.token, form, origin=session.origin
            )
            self.assertEqual(self.led_to(channel), "/session")
            self.assertEqual(self.kept(channel).token, "")  # type: ignore[union-attr]

    def test_pasted(self) -> None:
        """With an access token, which signing out leaves as it is."""
        self.assertEqual(self.send("/session", how="token", token="no").code, 401)
        for wrong in ("", "é", "a\r\nb"):
            channel = self.send("/session", how="token", token=wrong)
            self.assertEqual(channel.code, 400, wrong)
        channel = self.send("/session", how="token", token=f" {self.admin_token}\n")
        self.assertEqual(channel.code, 303)
        session = self.kept(channel)
        assert session is not None
        self.assertEqual(session.origin, Origin.PASTED)
        self.assertEqual(session.token, self.admin_token)
        # Who has put the old ID in the browser does not know that of the session.
        self.assertNotEqual(session.id, ID)
        self.assertEqual(session.begun, ID)
        self.assertEqual(self.send("/session/end", session.token).code, 303)
        self.assertEqual(self.visit("GET", "/", session.token).code, 200)

    def test_too_long(self) -> None:
        """A token that no browser keeps in a cookie is told as such, at once."""
        long = "a" * 4100
        self.get_success(
            self.store.add_access_token_to_user("@alice:test", long, None, None)
        )
        channel = self.send("/session", how="token", token=long)
        self.assertEqual(channel.code, 400, channel.result)
        self.assertIn("This token is too long", channel.text_body)
        self.assertIsNone(self.kept(channel))

    def test_leads_nowhere_else(self) -> None:
        """Signing in leads to no place but the console."""
        for wrong in (
            *("https://evil.example", "//evil.example", "/\\evil", "/\nx", "x", ""),
            *("/../../../_matrix/client/v3/login/sso/redirect?redirectUrl=x", "/..//x"),
            *("/session", "/session?x", "/%2e%2e/%2e%2e/x/y", "/static/x"),
        ):
            channel = self.send(
                "/session", how="token", token=self.admin_token, next=wrong
            )
            self.assertEqual(self.led_to(channel), "/", wrong)
        for asked, right in (
            *((path, path) for path in ("/servers?status=online", "/servers/a%2Fb")),
            # What only takes forms leads to the page that they are on.
            ("/runs/7/cancel", "/runs/7"),
        ):
            channel = self.send(
                "/session", how="token", token=self.admin_token, next=asked
            )
            self.assertEqual(self.led_to(channel), right)

    def test_first_visit(self) -> None:
        """A browser that comes for the first time is given a session ID, to which the
        form is bound; it is not given anew."""
        channel = self.visit("GET", "/session")
        session = self.kept(channel)
        assert session is not None
        self.assertEqual(session.origin, Origin.NONE)
        self.assertIsNone(self.kept(self.visit("GET", "/session", "")))

    def test_strange_host(self) -> None:
        """Whatever a client says to have asked for, single sign-on is offered."""
        flows = [{"type": "m.login.sso"}]
        for host in ("test:x", "test:99999", "[::1", "a b", "\u202e", "<b>"):
            with mock.patch.object(Sessions, "login_flows", return_value=flows):
                headers = [("Host", host)]
                channel = self.visit("GET", "/", headers=headers)
            self.assertEqual(channel.code, 401, (host, channel.result))
            self.assertNotIn("<b>", channel.text_body)
            leads = re.findall(
                r"redirectUrl=https?%3A%2F%2F(.*?)%2F", channel.text_body
            )
            self.assertEqual(len(leads), 1)
            self.assertEqual(
                leads == ["localhost"], host in ("test:x", "test:99999", "[::1")
            )


class TooOftenTestCase(ConsoleTestCase):
    """Accounts are with a service, which nobody may have asked without end."""

    def setUp(self) -> None:
        super().setUp()
        away = SynapseError(503, "away")
        for name, value in (
            *(("has_service", True), ("login_flows", lambda *_: ())),
            ("service", mock.AsyncMock(side_effect=away)),
        ):
            self.patch(Sessions, name, value)

    def default_config(self) -> dict[str, Any]:
        limit = {"per_second": 0.1, "burst_count": 3}
        return {**super().default_config(), "rc_login": {"address": limit}}

    def test_steps(self) -> None:
        """Each step counts, by the address: then 429 says when to try again, the code
        of a device is waited for all the same, and a session stays."""
        cookie = cookie_name("test", "renewal")
        renewal = Renewal("client", 0, "spent").value()
        for path, most, status in (
            *(("begin", 3, 429), ("device", 5, 200)),
            *(("back", 5, 429), ("refresh", 5, 429)),
        ):
            # Each with as many tries as there may be.
            self.reactor.advance(60)
            form = {"csrf": self.form_token(""), "uri": "", "complete": ""}
            headers = [
                ("Cookie", f"{COOKIE}={Session(ID).value()}; {cookie}={renewal}"),
            ]
            with mock.patch.object(limits, "GOING_ON_BURST", 5):
                for number in range(most + 1):
                    is_last = number == most
                    channel = self.visit(
                        "POST", f"/session/{path}", None, form, headers
                    )
                    before = 400 if path == "back" else 503
                    expected = status if is_last else before
                    self.assertEqual(channel.code, expected, (path, number))
            if path in ("begin", "back"):
                self.assertRegex(channel.text_body, "try again in [0-9]+ s", path)
            elif path == "device":
                self.assertIn("data-submit", channel.text_body)
            self.assertIsNone(self.kept(channel))


class OffTestCase(ConsoleTestCase):
    """The console is switched off."""

    config = {"console": {"enabled": False}}

    def test_off(self) -> None:
        """Nothing answers, and the status says why."""
        for path in ("", "/", "/session", "/static/x"):
            channel = self.visit("GET", path, self.admin_token)
            self.assertEqual(channel.code, 404)
            self.assertEqual(channel.json_body["errcode"], "M_UNRECOGNIZED")
        status = self.get_json(f"{V2}/status")
        self.assertIn("console.enabled", status["features"]["console"]["reason"])
