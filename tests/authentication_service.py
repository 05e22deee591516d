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
    """A refresh token, and what took its place once it was spent."""

    grant: Grant
    next: str = ""
    next_access: str = ""


class AuthenticationService(WebSite):
    """The stand-in."""

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
        self.used: set[str] = set()
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
            return _error("invalid_client_metadata", "invalid client_uri")
        grants = body["grant_types"]
        if "authorization_code" in grants and not body.get("redirect_uris"):
            return _error("invalid_redirect_uri", "missing redirect_uris")
        for uri in body.get("redirect_uris", ()):
            found = _URI.fullmatch(uri)
            is_native = (
                body["application_type"] == "native"
                and found is not None
                and (found["scheme"], found["host"] in _LOCAL) == ("http", True)
            )
            is_web = (
                found is not None
                and found["scheme"] == "https"
                and found["host"] not in _LOCAL
                and f".{found['host']}".endswith(f".{site['host']}")
            )
            if not (is_native or is_web):
                return _error("invalid_redirect_uri", "invalid redirect_uri")
        for client_id, known in self.clients.items():
            if known == body:
                return as_json({**body, "client_id": client_id}, 201)
        client_id = secrets.token_hex(13).upper()
        self.clients[client_id] = body
        return as_json({**body, "client_id": client_id}, 201)

    # -- signing in there --------------------------------------------------------------

    def get_authorize(self, asked: Asked) -> Answer:
        query = asked.query
        client = self.clients.get(query["client_id"])
        if client is None or query["redirect_uri"] not in client["redirect_uris"]:
            return page("Unknown client, or redirect_uri", 400)
        grant = Grant(query["client_id"], query["scope"], query)
        wrong = {"state": query["state"]}
        if query.get("prompt") == "none":
            return self._back(grant, error="login_required", **wrong)
        if query["response_type"] != "code":
            return self._back(grant, error="unsupported_response_type", **wrong)
        if query.get("code_challenge_method") != "S256":
            return self._back(grant, error="invalid_request", **wrong)
        return self._ask(grant, "consent")

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
        code = asked.query.get("code", "")
        if code in self.user_codes:
            return self._ask(self.user_codes[code], "device_consent")
        return page('<form action="/link"><input name="code"><button>Go on</button>')

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
        if ADMIN in tokens and self.user not in self.admins:
            return f"scope '{ADMIN}' not allowed"
        if sum(token.startswith(DEVICE) for token in tokens) != 1:
            return "only one device scope is allowed at a time"
        for token in tokens:
            if token not in (API, ADMIN) and not re.fullmatch(
                re.escape(DEVICE) + r"[A-Za-z0-9._~!$&'()*+,;=:@/-]{10,}", token
            ):
                return f"scope '{token}' not allowed"
        return ""

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
        client = self.clients.get(asked.form["client_id"])
        if client is None:
            return _error("invalid_client", status=401)
        if DEVICE_GRANT not in client["grant_types"]:
            return _error("unauthorized_client", status=401)
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
        client = self.clients.get(form["client_id"])
        if client is None:
            return _error("invalid_client", status=401)
        if form["grant_type"] not in client["grant_types"]:
            return _error("unauthorized_client", status=401)
        if form["grant_type"] == "refresh_token":
            return self._refreshed(form)
        if form["grant_type"] == "authorization_code":
            grant = self.codes.get(form["code"])
            if grant is None or grant.state != "fulfilled":
                return _error("invalid_grant")
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            challenge = urlsafe_b64encode(digest).decode().rstrip("=")
            if challenge != grant.asked["code_challenge"]:
                return _error("invalid_grant", "PKCE verification failed")
            if form["redirect_uri"] != grant.asked["redirect_uri"]:
                return _error("invalid_grant")
        else:
            grant = self.device_codes.get(form["device_code"])
            if grant is None:
                return _error("invalid_grant")
            if grant.state != "fulfilled" or self.says_next:
                known = {
                    "pending": "authorization_pending",
                    "rejected": "access_denied",
                }
                said = self.says_next.pop(0) if self.says_next else known[grant.state]
                return _error(said, status=403)
        if form["client_id"] != grant.client_id:
            return _error("invalid_grant")
        grant.state = "exchanged"
        grant.scope = " ".join(
            token for token in grant.scope.split() if token not in self.withheld
        )
        if self.homeserver is not None and grant.device:
            self.homeserver.add_device(grant.user, grant.device)
        return self._issue(grant)

    def _issue(self, grant: Grant, spent: Refresh | None = None) -> Answer:
        access, refresh = f"mat_{secrets.token_hex(15)}", f"mar_{secrets.token_hex(15)}"
        self.access[access] = grant
        self.refresh[refresh] = Refresh(grant)
        if spent is not None:
            spent.next, spent.next_access = refresh, access
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
        if token.next:
            self.respent += 1
            # Spent already: taken again only while what came instead is unused.
            if self.refresh[token.next].next or token.next_access in self.used:
                return _error("invalid_grant")
            del self.refresh[token.next]
            self.access.pop(token.next_access, None)
        before = [t for t, grant in self.access.items() if grant is token.grant]
        for access in before:
            del self.access[access]
        return self._issue(token.grant, token)

    def post_oauth2_introspect(self, asked: Asked) -> Answer:
        by_client = asked.form.get("client_secret") == self.secret
        if asked.authorization != f"Bearer {self.secret}" and not by_client:
            return _error("invalid_client", status=401)
        token = asked.form["token"]
        grant = self.access.get(token)
        if grant is None or grant.state == "ended":
            return as_json({"active": False})
        self.used.add(token)
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
        if asked.form["client_id"] not in self.clients:
            return _error("invalid_client", status=401)
        found = self.refresh.get(token)
        grant = self.access.get(token) if found is None else found.grant
        if grant is not None and grant.state != "ended":
            if grant.client_id != asked.form["client_id"]:
                return _error("unauthorized_client", status=401)
            grant.state = "ended"
            self.ended.append(grant)
            if self.homeserver is not None and grant.device:
                self.homeserver.remove_device(grant.user, grant.device)
        return Answer(200, b"")


def _error(error: str, description: str = "", status: int = 400) -> Answer:
    more = {"error_description": description} if description else {}
    return as_json({"error": error, **more}, status)
