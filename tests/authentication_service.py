# SPDX-License-Identifier: Apache-2.0
"""A stand-in for matrix-authentication-service, over HTTP, which behaves as that does.

As in its `policies/client_registration`, `policies/authorization_grant` and
`crates/handlers/src/oauth2`: what it registers, whom it gives the scope of admins,
PKCE, tokens of five minutes, refresh tokens that are spent once, the device grant, and
that it tells Synapse of each device.
"""

import hashlib
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from html import escape
from typing import Any, Protocol
from urllib.parse import urlencode

import attr
from web_site import Answer, Asked, WebSite, as_json, page, see

API = "urn:matrix:client:api:*"
ADMIN = "urn:synapse:admin:*"
DEVICE = "urn:matrix:client:device:"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"

_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>(?:[a-z0-9-]+\.)*[a-z0-9-]+|\[::1\])(?::[0-9]+)?"
    r"(/[A-Za-z0-9/._~-]*)?"
)
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Homeserver(Protocol):
    """What the service tells the homeserver."""

    def add_device(self, user: str, device: str) -> None: ...

    def remove_device(self, user: str, device: str) -> None: ...


@attr.s(auto_attribs=True, eq=False)
class Grant:
    """A session of somebody who has signed in, or the wish for one."""

    client_id: str
    scope: str
    asked: Mapping[str, str]
    user: str = ""
    state: str = "pending"

    @property
    def device(self) -> str:
        (found,) = [s for s in self.scope.split() if s.startswith(DEVICE)] or [""]
        return found.removeprefix(DEVICE)


@attr.s(auto_attribs=True, eq=False)
class Refresh:
    """A refresh token, which is taken once."""

    grant: Grant
    is_spent: bool = False


class AuthenticationService(WebSite):
    """The stand-in; what a client must not ask fails the test."""

    def __init__(self, address: str, port: int, secret: str) -> None:
        super().__init__(address, port)
        self.secret = secret
        self.homeserver: Homeserver | None = None
        # It is reached over http here, and announces itself as a real one does.
        self.issuer = "https://accounts.example.test/"
        self.lifetime_s, self.interval_s = 300, 5
        # Who is signed in there, in whatever browser, and who may be an admin.
        self.user = "admin"
        self.admins = {"admin"}
        # What a service with other rules takes away from every scope.
        self.withheld: set[str] = set()
        # What is said next of a device code that somebody has confirmed.
        self.says_next: list[str] = []
        self.clients: dict[str, Mapping[str, Any]] = {}
        self.codes: dict[str, Grant] = {}
        self.device_codes: dict[str, Grant] = {}
        self.user_codes: dict[str, Grant] = {}
        self.access: dict[str, Grant] = {}
        self.refresh: dict[str, Refresh] = {}
        self.ended: list[Grant] = []
        # How often a refresh token came that had been spent.
        self.respent = 0

    # -- what it announces, and whom it knows ------------------------------------------

    def get_wellknown_openidconfiguration(self, _: Asked) -> Answer:
        endpoints = {
            "authorization": "authorize",
            "token": "oauth2/token",
            "registration": "oauth2/registration",
            "revocation": "oauth2/revoke",
            "introspection": "oauth2/introspect",
            "device_authorization": "oauth2/device",
        }
        return as_json(
            {
                "issuer": self.issuer,
                "account_management_uri": f"{self.url}/account/",
                "jwks_uri": f"{self.url}/oauth2/keys.json",
                "response_types_supported": ["code"],
                "response_modes_supported": ["form_post", "query", "fragment"],
                "grant_types_supported": [
                    *("authorization_code", "refresh_token", DEVICE_GRANT)
                ],
                "code_challenge_methods_supported": ["plain", "S256"],
                "prompt_values_supported": ["login", "create"],
                **{
                    f"{name}_endpoint": f"{self.url}/{p}"
                    for name, p in endpoints.items()
                },
            }
        )

    def post_oauth2_registration(self, asked: Asked) -> Answer:
        body = asked.json
        site = _URI.fullmatch(body["client_uri"])
        if site is None or site["scheme"] != "https" or site["host"] in _LOCAL:
            return _error("invalid_client_metadata")
        uris = body.get("redirect_uris", ())
        assert uris or "authorization_code" not in body["grant_types"]
        for uri in uris:
            found = _URI.fullmatch(uri)
            assert found is not None
            is_local = found["host"] in _LOCAL
            if found["scheme"] == "http":
                assert (body["application_type"], is_local) == ("native", True)
            else:
                assert (found["scheme"], is_local) == ("https", False)
                assert f".{found['host']}".endswith(f".{site['host']}")
        for client_id, known in self.clients.items():
            if known == body:
                return as_json({**body, "client_id": client_id}, 201)
        client_id = secrets.token_hex(13).upper()
        self.clients[client_id] = body
        return as_json({**body, "client_id": client_id}, 201)

    # -- signing in there --------------------------------------------------------------

    def get_authorize(self, asked: Asked) -> Answer:
        query = asked.query
        assert (
            query["redirect_uri"] in self.clients[query["client_id"]]["redirect_uris"]
        )
        assert query.get("prompt") != "none"
        assert (query["response_type"], query["code_challenge_method"]) == (
            "code",
            "S256",
        )
        return self._ask(Grant(query["client_id"], query["scope"], query), "consent")

    def post_consent(self, asked: Asked) -> Answer:
        grant = self._confirmed(asked)
        state = grant.asked["state"]
        if grant.state == "rejected":
            said = {"error": "access_denied", "error_description": "<b>No</b> consent"}
            return self._back(grant, **said, state=state)
        code = secrets.token_urlsafe(24)
        self.codes[code] = grant
        return self._back(grant, code=code, state=state)

    def get_link(self, asked: Asked) -> Answer:
        return self._ask(self.user_codes[asked.query["code"]], "device_consent")

    def post_device_consent(self, asked: Asked) -> Answer:
        self._confirmed(asked)
        return page("You can close this window")

    _asking: dict[str, Grant]

    def _ask(self, grant: Grant, path: str) -> Answer:
        """Ask who is signed in for their consent; the policy lets some not give it."""
        if why := self._violation(grant.scope):
            return page(f"The request was denied by the policy: {escape(why)}")
        if not hasattr(self, "_asking"):
            self._asking = {}
        key = secrets.token_hex(8)
        self._asking[key] = grant
        grant.user = self.user
        client = self.clients[grant.client_id]
        return page(
            f"<h1>Allow {escape(client['client_name'])}?</h1>"
            f"<p>{escape(grant.scope)}</p><form method='post' action='/{path}'>"
            f"<input type='hidden' name='key' value='{key}'>"
            "<button name='answer' value='yes'>Continue</button>"
            "<button name='answer' value='no'>Cancel</button></form>"
        )

    def _violation(self, scope: str) -> str:
        tokens = scope.split()
        (device,) = [token for token in tokens if token.startswith(DEVICE)]
        assert re.fullmatch(
            r"[A-Za-z0-9._~!$&'()*+,;=:@/-]{10,}", device[len(DEVICE) :]
        )
        assert {*tokens} <= {API, ADMIN, device}
        is_refused = ADMIN in tokens and self.user not in self.admins
        return f"scope '{ADMIN}' not allowed" if is_refused else ""

    def _confirmed(self, asked: Asked) -> Grant:
        grant = self._asking.pop(asked.form["key"])
        is_yes = asked.form["answer"] == "yes"
        grant.state = "fulfilled" if is_yes else "rejected"
        return grant

    @staticmethod
    def _back(grant: Grant, **what: str) -> Answer:
        return see(f"{grant.asked['redirect_uri']}?{urlencode(what)}")

    # -- tokens ------------------------------------------------------------------------

    def post_oauth2_device(self, asked: Asked) -> Answer:
        assert DEVICE_GRANT in self.clients[asked.form["client_id"]]["grant_types"]
        grant = Grant(asked.form["client_id"], asked.form["scope"], asked.form)
        device_code, user_code = secrets.token_hex(16), secrets.token_hex(3).upper()
        self.device_codes[device_code] = self.user_codes[user_code] = grant
        return as_json(
            {
                "device_code": device_code,
                "user_code": user_code,
                "verification_uri": f"{self.url}/link",
                "verification_uri_complete": f"{self.url}/link?code={user_code}",
                "expires_in": 1200,
                "interval": self.interval_s,
            }
        )

    def post_oauth2_token(self, asked: Asked) -> Answer:
        form = asked.form
        assert form["grant_type"] in self.clients[form["client_id"]]["grant_types"]
        if form["grant_type"] == "refresh_token":
            return self._refreshed(form)
        if form["grant_type"] == "authorization_code":
            grant = self.codes.get(form["code"])
            if grant is None or grant.state != "fulfilled":
                return _error("invalid_grant")
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            challenge = urlsafe_b64encode(digest).decode().rstrip("=")
            assert challenge == grant.asked["code_challenge"]
            assert form["redirect_uri"] == grant.asked["redirect_uri"]
        else:
            grant = self.device_codes[form["device_code"]]
            if grant.state != "fulfilled" or self.says_next:
                known = {
                    "pending": "authorization_pending",
                    "rejected": "access_denied",
                }
                said = self.says_next.pop(0) if self.says_next else known[grant.state]
                return _error(said, status=403)
        assert form["client_id"] == grant.client_id
        grant.state = "exchanged"
        grant.scope = " ".join(
            token for token in grant.scope.split() if token not in self.withheld
        )
        if self.homeserver is not None and grant.device:
            self.homeserver.add_device(grant.user, grant.device)
        return self._issue(grant)

    def _issue(self, grant: Grant) -> Answer:
        access, refresh = f"mat_{secrets.token_hex(15)}", f"mar_{secrets.token_hex(15)}"
        self.access[access] = grant
        self.refresh[refresh] = Refresh(grant)
        return as_json(
            {
                "access_token": access,
                "refresh_token": refresh,
                "token_type": "Bearer",
                "expires_in": self.lifetime_s,
                "scope": grant.scope,
            }
        )

    def _refreshed(self, form: Mapping[str, str]) -> Answer:
        token = self.refresh.get(form["refresh_token"])
        if (
            token is None
            or token.grant.state == "ended"
            or token.grant.client_id != form["client_id"]
        ):
            return _error("invalid_grant")
        if token.is_spent:
            self.respent += 1
            return _error("invalid_grant")
        before = [t for t, grant in self.access.items() if grant is token.grant]
        for access in before:
            del self.access[access]
        token.is_spent = True
        return self._issue(token.grant)

    def post_oauth2_introspect(self, asked: Asked) -> Answer:
        by_client = asked.form.get("client_secret") == self.secret
        assert by_client or asked.authorization == f"Bearer {self.secret}"
        grant = self.access.get(asked.form["token"])
        if grant is None or grant.state == "ended":
            return as_json({"active": False})
        return as_json(
            {
                "active": True,
                "scope": grant.scope,
                "client_id": grant.client_id,
                "username": grant.user,
                "sub": f"sub-of-{grant.user}",
                "token_type": "access_token",
                "expires_in": self.lifetime_s,
            }
        )

    def post_oauth2_revoke(self, asked: Asked) -> Answer:
        token = asked.form["token"]
        found = self.refresh.get(token)
        grant = self.access.get(token) if found is None else found.grant
        if grant is not None and grant.state != "ended":
            assert grant.client_id == asked.form["client_id"]
            grant.state = "ended"
            self.ended.append(grant)
            if self.homeserver is not None and grant.device:
                self.homeserver.remove_device(grant.user, grant.device)
        return Answer(200, b"")


def _error(error: str, status: int = 400) -> Answer:
    return as_json({"error": error}, status)
