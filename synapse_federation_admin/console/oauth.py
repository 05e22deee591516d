# SPDX-License-Identifier: Apache-2.0
"""OAuth 2.0 at this homeserver's authentication service, as Matrix has it (MSC2964).

Nothing of a sign-in under way is kept here: what is needed later is in the `state`,
signed for the session, and the code verifier (RFC 7636) is made of it. So any process
can go on, and several tabs can sign in at once.
"""

import hashlib
import json
import logging
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

import attr
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin.console.cookie import Renewal, Session, is_access_token
from synapse_federation_admin.homeserver.admin_resource import CONSOLE_PATH
from synapse_federation_admin.homeserver.sessions import Sessions

logger = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"

# What the service says while nobody has signed in there yet.
_NOT_YET = frozenset({"authorization_pending", "slow_down"})


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Tokens:
    """What the service gave: the access token, and what renews it."""

    access_token: str = attr.ib(repr=False)
    renewal: Renewal


class OAuth:
    """Signs in at the authentication service, renews tokens, and ends them."""

    def __init__(self, sessions: Sessions, secret: bytes, server_name: str) -> None:
        self._sessions = sessions
        self._secret = secret
        self._server_name = server_name
        # The IDs under which this process is known there, by redirect address; "" is
        # for the device grant, which has none.
        self._clients: dict[tuple[str, str], str] = {}

    async def authorization_url(
        self, session: Session, origin: str, next_path: str
    ) -> str | None:
        """Return where to sign in; None if the service takes no redirect to here.

        Args:
            session: In which it begins.
            origin: Of the console, as the browser has it: `https://example.org`.
            next_path: The page to go to then.

        Raises:
            SynapseError: 503, the service is away.
        """
        service = await self._sessions.service()
        client_id, _ = await self._client(service, _redirect(origin), origin)
        endpoint = str(service.get("authorization_endpoint") or "")
        if client_id is None or not is_web(endpoint):
            return None
        state = self._state(session, client_id, next_path)
        verifier = session.sign(self._secret, "verifier", state)
        query = {
            "response_type": "code",
            "response_mode": "query",
            "client_id": client_id,
            "redirect_uri": _redirect(origin),
            "scope": _scope(),
            "state": state,
            "code_challenge": _base64(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def sign_in_of(self, session: Session, state: str) -> tuple[str, str]:
        """Return whose sign-in a `state` is of: the client ID, and where it goes on.

        Raises:
            SynapseError: 400, it was not begun in this session.
        """
        payload, _, signature = state.rpartition(".")
        wanted = session.sign(self._secret, "state", payload)
        if not secrets.compare_digest(signature.encode(), wanted.encode()):
            raise SynapseError(
                HTTPStatus.BAD_REQUEST,
                "This sign-in was not begun in this browser, or is an old one. Sign in "
                "again.",
                Codes.INVALID_PARAM,
            )
        _, client_id, next_path = json.loads(urlsafe_b64decode(payload))
        return client_id, next_path

    async def exchange(
        self, session: Session, origin: str, state: str, code: str, now_ms: int
    ) -> tuple[Tokens, str]:
        """Return the tokens for the code with which the service has sent somebody back.

        And the page to go to then.

        Raises:
            SynapseError: 400, it refuses the code; 503, it is away.
        """
        client_id, next_path = self.sign_in_of(session, state)
        service = await self._sessions.service()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": _redirect(origin),
            "client_id": client_id,
            "code_verifier": session.sign(self._secret, "verifier", state),
        }
        return await self._tokens(service, client_id, form, now_ms), next_path

    async def begin_on_device(self) -> tuple[str, Mapping[str, Any]]:
        """Begin a sign-in that goes on in another window or on another device.

        Returns:
            The client ID, and what the service says (RFC 8628, 3.2).

        Raises:
            SynapseError: 400, the service does not have that; 503, it is away.
        """
        service = await self._sessions.service()
        client_id, why = await self._client(service, "", "")
        endpoint = service.get("device_authorization_endpoint")
        if client_id is None:
            raise _refused(f"it takes no application such as this one: {why}")
        if not endpoint:
            raise _refused("it does not let people sign in on another device")
        status, answer = await self._sessions.call_service(
            endpoint, form={"client_id": client_id, "scope": _scope()}
        )
        if status != HTTPStatus.OK:
            raise _refused(_why(answer))
        return client_id, answer

    async def finish_on_device(
        self, client_id: str, device_code: str, now_ms: int
    ) -> Tokens | None:
        """Return the tokens of such a sign-in; None while nobody has signed in.

        Raises:
            SynapseError: 400, it was refused or took too long; 503.
        """
        form = {
            "grant_type": _DEVICE_GRANT,
            "device_code": device_code,
            "client_id": client_id,
        }
        service = await self._sessions.service()
        try:
            return await self._tokens(service, client_id, form, now_ms)
        except _NotYetError:
            return None

    async def renew(self, renewal: Renewal, now_ms: int) -> Tokens:
        """Return tokens that take the place of those that end soon.

        Raises:
            SynapseError: 400, the session has ended there; 503, the service is away.
        """
        form = {
            "grant_type": "refresh_token",
            "refresh_token": renewal.token,
            "client_id": renewal.client_id,
        }
        service = await self._sessions.service()
        return await self._tokens(
            service, renewal.client_id, form, now_ms, before=renewal.token
        )

    async def revoke(self, client_id: str, token: str) -> None:
        """End a session at the service, by its access or refresh token.

        Raises:
            SynapseError: 503, the service is away.
        """
        service = await self._sessions.service()
        if endpoint := service.get("revocation_endpoint"):
            await self._sessions.call_service(
                endpoint, form={"token": token, "client_id": client_id}
            )

    async def _client(
        self, service: Mapping[str, Any], redirect: str, origin: str
    ) -> tuple[str | None, str]:
        """Return the ID of this application (RFC 7591), or None and why there is none.

        Args:
            service: What the service announces.
            redirect: Where it leads back to; "" for the device grant.
            origin: That of the console; "" for the device grant.
        """
        key = (str(service.get("issuer")), redirect)
        if key not in self._clients:
            endpoint = service.get("registration_endpoint")
            if not endpoint:
                return None, "it registers none"
            grants = ["authorization_code"] if redirect else [_DEVICE_GRANT]
            answer_types = {"redirect_uris": [redirect], "response_types": ["code"]}
            # What runs on the machine itself, as through an SSH tunnel, may be led back
            # to over http, if it is a native application (RFC 8252, 7.3).
            is_local = not origin or urlsplit(origin).hostname in _LOOPBACK
            site = f"https://{self._server_name}" if is_local else origin
            status, answer = await self._sessions.call_service(
                endpoint,
                body={
                    "client_name": "Federation console",
                    "client_uri": f"{site}/",
                    "grant_types": [*grants, "refresh_token"],
                    "token_endpoint_auth_method": "none",
                    "application_type": "native" if is_local else "web",
                    **(answer_types if redirect else {}),
                },
            )
            client_id = answer.get("client_id")
            if status >= HTTPStatus.BAD_REQUEST or not isinstance(client_id, str):
                why = _why(answer)
                logger.info("The authentication service refuses %s: %s", redirect, why)
                return None, why
            if len(self._clients) >= _CLIENTS:
                # Who makes up host names must not fill the memory.
                self._clients.clear()
            self._clients[key] = client_id
        return self._clients[key], ""

    def _state(self, session: Session, client_id: str, next_path: str) -> str:
        parts = [secrets.token_urlsafe(9), client_id, next_path]
        payload = urlsafe_b64encode(json.dumps(parts).encode()).decode()
        return f"{payload}.{session.sign(self._secret, 'state', payload)}"

    async def _tokens(
        self,
        service: Mapping[str, Any],
        client_id: str,
        form: Mapping[str, str],
        now_ms: int,
        before: str = "",
    ) -> Tokens:
        endpoint = service.get("token_endpoint")
        if not endpoint:
            raise _refused("it names no address for tokens")
        status, answer = await self._sessions.call_service(endpoint, form=form)
        if str(answer.get("error")) in _NOT_YET:
            raise _NotYetError
        token = answer.get("access_token")
        if status != HTTPStatus.OK or not isinstance(token, str):
            raise _refused(_why(answer))
        if not is_access_token(token):
            raise _refused("what it gives is no access token")
        lasts_s = answer.get("expires_in")
        if not isinstance(lasts_s, int) or not 0 < lasts_s < _LASTS_S:
            # Without a time it is one that lasts.
            lasts_s = _LASTS_S
        refresh = answer.get("refresh_token")
        if not isinstance(refresh, str):
            refresh = before
        return Tokens(token, Renewal(client_id, now_ms + lasts_s * 1000, refresh))


# Registrations that are kept.
_CLIENTS = 100

# For how long a token lasts of which the service does not say it.
_LASTS_S = 10**9


class _NotYetError(Exception):
    """Nobody has signed in yet."""


def _redirect(origin: str) -> str:
    return f"{origin}{CONSOLE_PATH}/session/back"


def _scope() -> str:
    device = secrets.token_hex(5).upper()
    return (
        f"urn:matrix:client:api:* urn:matrix:client:device:{device} urn:synapse:admin:*"
    )


def _base64(digest: bytes) -> str:
    return urlsafe_b64encode(digest).decode().rstrip("=")


def is_web(address: str) -> bool:
    """Tell whether an address is one that a browser may be led to."""
    return address.startswith(("https://", "http://"))


def _why(answer: Mapping[str, Any]) -> str:
    return str(answer.get("error_description") or answer.get("error") or "no reason")


def _refused(why: str) -> SynapseError:
    return SynapseError(
        HTTPStatus.BAD_REQUEST,
        f"The authentication service refuses this: {why}",
        Codes.FORBIDDEN,
    )
