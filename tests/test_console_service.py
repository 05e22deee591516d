# SPDX-License-Identifier: Apache-2.0
"""Signing in to the console at an authentication service.

A stand-in answers as matrix-authentication-service does: it knows only applications
whose addresses are https, takes a code once and with its verifier, ends access tokens
after five minutes, and takes a refresh token once.
"""

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from http.cookies import SimpleCookie
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from synapse.api.auth.mas import IntrospectionResponse, MasDelegatedAuth
from synapse.module_api.errors import SynapseError
from test_console import CONSOLE, COOKIE, ConsoleTestCase

from synapse_federation_admin.console.cookie import (
    Origin,
    Renewal,
    Session,
    cookie_name,
)
from synapse_federation_admin.homeserver.sessions import Sessions

# What Synapse has for it differs before.
pytestmark = pytest.mark.one_synapse

ISSUER = "https://auth.test"
ADMIN = "urn:synapse:admin:*"
API = "urn:matrix:client:api:*"


class Service:
    """The stand-in."""

    def __init__(self) -> None:
        self.is_away = False
        self.scope = {API, ADMIN}
        self.clients: dict[str, Mapping[str, Any]] = {}
        # Codes, with the form of the request for them; tokens that are valid.
        self.codes: dict[str, Mapping[str, str]] = {}
        self.access: dict[str, set[str]] = {}
        self.refresh: set[str] = set()
        self.device_codes: dict[str, bool] = {}
        self.revoked: list[str] = []

    metadata: Mapping[str, str] = {
        "issuer": ISSUER,
        **{
            f"{name}_endpoint": f"{ISSUER}/{name}"
            for name in (
                *("authorization", "token", "registration", "revocation"),
                "device_authorization",
            )
        },
    }

    async def service(self, _: Sessions) -> Mapping[str, str]:
        if self.is_away:
            raise SynapseError(503, "The authentication service does not answer")
        return self.metadata

    async def call(
        self,
        _: Sessions,
        url: str,
        *,
        form: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> tuple[int, Mapping[str, Any]]:
        if self.is_away:
            raise SynapseError(503, "The authentication service does not answer")
        answer: Mapping[str, Any] = getattr(self, urlsplit(url).path[1:])(form or body)
        return (400 if "error" in answer else 200), answer

    def registration(self, body: Any) -> Mapping[str, Any]:
        for uri in (body["client_uri"], *body.get("redirect_uris", ())):
            if not uri.startswith("https://"):
                return {"error": "invalid_redirect_uri"}
        client_id = f"client{len(self.clients)}"
        self.clients[client_id] = body
        return {"client_id": client_id}

    def authorize(self, url: str) -> str:
        """Sign somebody in; return with what they are sent back."""
        query = {
            name: value for name, (value,) in parse_qs(urlsplit(url).query).items()
        }
        client = self.clients[query["client_id"]]
        assert query["redirect_uri"] in client["redirect_uris"]
        assert query["code_challenge_method"] == "S256"
        assert re.fullmatch(
            rf"{re.escape(API)} urn:matrix:client:device:\w{{10,}} {re.escape(ADMIN)}",
            query["scope"],
        )
        code = f"code{len(self.codes)}"
        self.codes[code] = query
        return urlencode({"code": code, "state": query["state"]})

    def token(self, form: Mapping[str, str]) -> Mapping[str, Any]:
        assert form["client_id"] in self.clients
        if form["grant_type"] == "authorization_code":
            asked = self.codes.pop(form["code"], None)
            verifier = form["code_verifier"].encode()
            digest = urlsafe_b64encode(hashlib.sha256(verifier).digest())
            if (
                asked is None
                or asked["code_challenge"] != digest.decode().rstrip("=")
                or asked["redirect_uri"] != form["redirect_uri"]
                or asked["client_id"] != form["client_id"]
            ):
                return {"error": "invalid_grant"}
        elif form["grant_type"] == "refresh_token":
            if form["refresh_token"] not in self.refresh:
                return {"error": "invalid_grant"}
            self.refresh.remove(form["refresh_token"])
        elif not self.device_codes[form["device_code"]]:
            return {"error": "authorization_pending"}
        number = len(self.access)
        self.access[f"access{number}"] = self.scope
        self.refresh.add(f"refresh{number}")
        return {
            "access_token": f"access{number}",
            "refresh_token": f"refresh{number}",
            "expires_in": 300,
            "token_type": "Bearer",
        }

    def device_authorization(self, form: Mapping[str, str]) -> Mapping[str, Any]:
        assert form["client_id"] in self.clients
        self.device_codes["device_code"] = False
        return {
            "device_code": "device_code",
            "user_code": "ABCDEF",
            "verification_uri": f"{ISSUER}/link",
            "expires_in": 1200,
        }

    def revocation(self, form: Mapping[str, str]) -> Mapping[str, Any]:
        self.revoked.append(form["token"])
        self.refresh.discard(form["token"])
        return {}


class ServiceTestCase(ConsoleTestCase):
    """Synapse is configured for the service."""

    servlets = []

    def default_config(self) -> dict[str, Any]:
        config = super().default_config()
        return {
            **config,
            "public_baseurl": "https://test/",
            "enable_registration": False,
            "password_config": {"enabled": False},
            "matrix_authentication_service": {
                "enabled": True,
                "endpoint": ISSUER,
                "secret": "secret",
            },
        }

    def prepare(self, reactor: Any, clock: Any, hs: Any) -> None:
        self.service = Service()
        self.store = hs.get_datastores().main
        self.get_success(self.store.register_user("@admin:test"))

        async def introspect(
            _: MasDelegatedAuth, token: str, cache_context: Any
        ) -> IntrospectionResponse:
            cache_context.should_cache = False
            if self.service.is_away:
                raise OSError("away")
            scope = self.service.access.get(token)
            return IntrospectionResponse(
                retrieved_at_ms=clock.time_msec(),
                active=scope is not None,
                scope=" ".join(scope or ()),
                username="admin",
                expires_in=300,
            )

        for owner, name, stand_in in (
            (Sessions, "service", self.service.service),
            (Sessions, "call_service", self.service.call),
            (MasDelegatedAuth, "_introspect_token", introspect),
        ):
            function = stand_in

            async def call(*args: Any, function: Any = function, **more: Any) -> Any:
                return await function(*args, **more)

            patcher = mock.patch.object(owner, name, call)
            patcher.start()
            self.addCleanup(patcher.stop)
        self.is_https = True
        self.host = "test"

    def browse(
        self,
        method: str,
        path: str,
        cookies: Mapping[str, str] | None = None,
        **form: str,
    ) -> Any:
        headers = [("Host", self.host)]
        if cookies:
            value = "; ".join(f"{name}={value}" for name, value in cookies.items())
            headers.append(("Cookie", value))
        with mock.patch(
            "synapse.http.site.SynapseRequest.isSecure",
            return_value=self.is_https,
            create=True,
        ):
            return self.make_request(
                method,
                CONSOLE + path,
                content=urlencode(form),
                content_type=b"application/x-www-form-urlencoded",
                custom_headers=headers,
                shorthand=False,
            )

    def jar(self, channel: Any, before: Mapping[str, str]) -> dict[str, str]:
        """Return the cookies that a browser has after an answer."""
        found = dict(before)
        for line in channel.headers.getRawHeaders("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                self.assertTrue(morsel["httponly"])
                self.assertEqual(bool(morsel["secure"]), self.is_https)
                self.assertEqual(morsel["samesite"].lower(), "lax")
                found[name] = morsel.value
        return found

    def csrf(self, channel: Any) -> str:
        return re.findall('name="csrf" value="([0-9a-f]+)"', channel.text_body)[0]

    def begin(self, next_path: str) -> tuple[Any, dict[str, str]]:
        """Begin to sign in; return the answer, and the cookies."""
        page = self.browse("GET", f"/session?{urlencode({'next': next_path})}")
        self.assertIn("Sign in at the authentication service", page.text_body)
        self.assertNotIn('type="password" autocomplete="current', page.text_body)
        cookies = self.jar(page, {})
        form = {"csrf": self.csrf(page), "next": next_path}
        return self.browse("POST", "/session/begin", cookies, **form), cookies

    def come_back(self, query: str, cookies: Mapping[str, str]) -> Any:
        """Be sent back by the service, and have the script send the form."""
        page = self.browse("GET", f"/session/back?{query}", cookies)
        if page.code != 200:
            return page
        self.assertIn("data-submit", page.text_body)
        form = {name: value for name, (value,) in parse_qs(query).items()}
        form["csrf"] = self.csrf(page)
        return self.browse("POST", "/session/back", cookies, **form)

    def sent_to(self, channel: Any) -> str:
        """Return the address at the service to which a page leads."""
        self.assertEqual(channel.code, 200, channel.result)
        (found,) = re.findall(
            'class="button primary" href="([^"]+)"', channel.text_body
        )
        return str(found.replace("&amp;", "&"))

    def sign_in(self) -> dict[str, str]:
        channel, cookies = self.begin("/")
        query = self.service.authorize(self.sent_to(channel))
        channel = self.come_back(query, cookies)
        self.assertEqual(channel.code, 303, channel.result)
        return self.jar(channel, cookies)

    def test_code(self) -> None:
        """With a code: to the page that was asked for; a code is taken once, and only
        in the browser in which it was asked for. Two tabs sign in at once."""
        channel, cookies = self.begin("/keys")
        page = self.browse("GET", "/session?next=/audit", cookies)
        form = {"csrf": self.csrf(page), "next": "/audit"}
        other_tab = self.browse("POST", "/session/begin", cookies, **form)
        queries = [
            self.service.authorize(self.sent_to(each)) for each in (channel, other_tab)
        ]
        self.assertEqual(len(self.service.clients), 1)
        stranger = self.jar(self.browse("GET", "/session"), {})
        refused = self.come_back(queries[0], stranger)
        self.assertEqual(refused.code, 400)
        self.assertIn("not begun in this browser", refused.text_body)

        for query, path in zip(queries, ("/keys", "/audit"), strict=True):
            channel = self.come_back(query, cookies)
            self.assertEqual(channel.code, 303, channel.result)
            location = channel.headers.getRawHeaders("Location")
            self.assertEqual(location, [CONSOLE + path])
            cookies = self.jar(channel, cookies)
        self.assertEqual(self.browse("GET", "/", cookies).code, 200)
        # What the other tab has brought before has ended at the service, too.
        self.assertEqual(self.service.revoked, ["refresh0"])
        again = self.come_back(queries[0], cookies)
        self.assertEqual(again.code, 400)
        self.assertIn("invalid_grant", again.text_body)
        denied = self.come_back(
            urlencode(
                {"error": "access_denied", "state": parse_qs(queries[0])["state"][0]}
            ),
            cookies,
        )
        self.assertEqual(denied.code, 400)
        self.assertIn("access_denied", denied.text_body)

    def test_renewed(self) -> None:
        """The access token is renewed before it ends, for the same forms; a refresh
        token that is spent ends the session, a service that is away does not."""
        cookies = self.sign_in()
        page = self.browse("GET", "/", cookies)
        self.assertIn("data-renew=", page.text_body)
        form = {"csrf": self.csrf(page)}
        self.service.is_away = True
        away = self.browse("POST", "/session/refresh", cookies, **form)
        self.assertEqual(away.code, 503)
        self.assertEqual(self.jar(away, cookies), cookies)
        page = self.browse("GET", "/", cookies)
        self.assertEqual(page.code, 503)
        self.assertIn("who is signed in stays so", page.text_body)
        self.assertIn("data-retry", page.text_body)
        self.service.is_away = False
        channel = self.browse("POST", "/session/refresh", cookies, **form)
        self.assertEqual(channel.code, 200, channel.result)
        renewed = self.jar(channel, cookies)
        self.assertEqual(self.csrf(self.browse("GET", "/", renewed)), form["csrf"])
        session = Session.parse(renewed[COOKIE])
        assert session is not None
        self.assertEqual(session.token, "access1")
        self.assertEqual(session.origin, Origin.SERVICE)
        spent = self.browse("POST", "/session/refresh", cookies, **form)
        self.assertEqual(spent.code, 401)
        self.assertEqual(self.browse("POST", "/session/refresh", cookies).code, 403)

    def test_ended(self) -> None:
        """Who comes after the access token has ended can sign in; the script renews it,
        and leads to what was asked for."""
        cookies = self.sign_in()
        self.service.access.clear()
        page = self.browse("GET", "/servers?status=online", cookies)
        self.assertEqual(page.code, 401)
        self.assertIn("Sign in at the authentication service", page.text_body)
        self.assertIn(f'data-back="{CONSOLE}/servers?status=online"', page.text_body)
        form = {"csrf": self.csrf(page)}
        renewed = self.browse("POST", "/session/refresh", cookies, **form)
        cookies = self.jar(renewed, cookies)
        page = self.browse("GET", "/servers?status=online", cookies)
        self.assertEqual(page.code, 200)
        self.assertNotIn("data-back", page.text_body)

    def test_answers_that_are_none(self) -> None:
        """What the service answers that is of no use is its fault, and no failure."""
        good = {"access_token": "a", "expires_in": 300, "refresh_token": "r"}
        for wrong in (
            *({"error": ["slow_down"]}, {"error": {}}, {"access_token": "a b\r\n"}),
            *({}, {"access_token": 1}, {"error": 1, "error_description": []}),
        ):
            channel, cookies = self.begin("/")
            query = self.service.authorize(self.sent_to(channel))
            with mock.patch.object(self.service, "token", return_value=wrong):
                channel = self.come_back(query, cookies)
            self.assertEqual(channel.code, 400, wrong)
            self.assertIn("refuses this", channel.text_body)
        cookies = self.sign_in()
        form = {"csrf": self.csrf(self.browse("GET", "/", cookies))}
        for more in ({"expires_in": "x"}, {"expires_in": -1}, {"refresh_token": 7}):
            with mock.patch.object(
                self.service, "token", return_value={**good, **more}
            ):
                channel = self.browse("POST", "/session/refresh", cookies, **form)
            self.assertEqual(channel.code, 200, more)
        with mock.patch.object(self.service, "metadata", {}):
            channel = self.browse("POST", "/session/refresh", cookies, **form)
            self.assertEqual(channel.code, 401)
            self.assertEqual(self.begin("/")[0].code, 400)
        script = {**self.service.metadata, "authorization_endpoint": "javascript:x"}
        with mock.patch.object(self.service, "metadata", script):
            channel, _ = self.begin("/")
        self.assertNotIn("javascript:", channel.text_body)

    def test_signing_out(self) -> None:
        """Signing out ends the session at the service; while that is away, it stays."""
        cookies = self.sign_in()
        form = {"csrf": self.csrf(self.browse("GET", "/", cookies))}
        self.service.is_away = True
        away = self.browse("POST", "/session/end", cookies, **form)
        self.assertEqual(away.code, 503)
        self.assertEqual(self.jar(away, cookies), cookies)
        self.service.is_away = False
        channel = self.browse("POST", "/session/end", cookies, **form)
        self.assertEqual(channel.code, 303)
        self.assertEqual(self.service.revoked, ["refresh0"])
        cookies = self.jar(channel, cookies)
        self.assertEqual(cookies[cookie_name("test", "renewal")], "")
        self.assertEqual(self.browse("GET", "/", cookies).code, 401)

    def test_scope(self) -> None:
        """A token without the scope of admins is 403, and says so; one without that of
        the API is not kept, and leads no way round."""
        self.service.scope = {API}
        cookies = self.sign_in()
        page = self.browse("GET", "/", cookies)
        self.assertEqual(page.code, 403)
        self.assertIn(ADMIN, page.text_body)
        self.service.scope = {ADMIN}
        channel, cookies = self.begin("/")
        query = self.service.authorize(self.sent_to(channel))
        channel = self.come_back(query, cookies)
        self.assertEqual(channel.code, 401)
        self.assertIn("grant access to the Matrix C-S API", channel.text_body)
        self.assertEqual(self.jar(channel, cookies), cookies)
        # Nor is it left behind at the service.
        self.assertIn("refresh1", self.service.revoked)

    def test_device(self) -> None:
        """Where the service takes no redirect to here, as over http: with a code that
        is typed in there."""
        self.is_https = False
        self.host = "lan.test"
        channel, cookies = self.begin("/keys")
        self.assertEqual(channel.code, 200, channel.result)
        self.assertIn("ABCDEF", channel.text_body)
        self.assertEqual(self.sent_to(channel), f"{ISSUER}/link")
        fields = dict(re.findall('name="([a-z_]+)" value="([^"]*)"', channel.text_body))
        channel = self.browse("POST", "/session/device", cookies, **fields)
        self.assertIn("ABCDEF", channel.text_body)
        self.service.device_codes["device_code"] = True
        channel = self.browse("POST", "/session/device", cookies, **fields)
        self.assertEqual(channel.code, 303, channel.result)
        location = channel.headers.getRawHeaders("Location")
        self.assertEqual(location, [f"{CONSOLE}/keys"])
        cookies = self.jar(channel, cookies)
        self.assertEqual(self.browse("GET", "/", cookies).code, 200)


def test_renewal_cookie() -> None:
    """What renews a session comes back from its cookie; what is none of ours, not."""
    for renewal in (Renewal("a~b", 1, "c~;é"), Renewal("", 0, "")):
        assert Renewal.parse(renewal.value()) == renewal
    for wrong in ("", "a~b", "a~b~c", "a~1~b~c", "a~-1~b", f"a~{'9' * 5000}~b"):
        assert Renewal.parse(wrong) is None
