# SPDX-License-Identifier: Apache-2.0
"""A small client: the bits of the Matrix client API and the admin API that we use."""

import hashlib
import hmac
import ssl
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
from attrs import frozen

from synapse_federation_admin.playground.processes import PlaygroundError

Json = dict[str, Any]

FEDERATION = "/_synapse/admin/v1/federation"
FEDERATION_V2 = "/_synapse/admin/v2/federation"
CONSOLE = "/_synapse/admin/federation/"

# All that is asked here is plain HTTP. To load the authorities that the system trusts
# takes 25 ms for each client.
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class ApiError(PlaygroundError):
    """A request was not answered with a 2xx status, or not at all."""

    def __init__(self, method: str, url: str, status: int, body: str) -> None:
        """Keep what was asked and what was answered.

        Args:
            method: the HTTP method.
            url: the whole URL.
            status: the HTTP status, or 0 if there was no answer.
            body: the answer's body, or why there was no answer.
        """
        super().__init__(f"{method} {url}: {status or 'no answer'}: {body[:500]}")
        self.status = status
        self.body = body


@frozen
class User:
    """A local user and what is needed to act as them."""

    user_id: str
    access_token: str
    password: str


def quoted(text: str) -> str:
    """Percent-encode a text for use as one segment of a path."""
    return quote(text, safe="")


def answer_to(request: httpx.Request, client: httpx.Client) -> Json:
    """Send a request and return the JSON object of its answer.

    Raises:
        ApiError: no answer, or one that is not 2xx.
    """
    url = str(request.url)
    try:
        response = client.send(request)
    except httpx.HTTPError as e:
        raise ApiError(request.method, url, 0, repr(e)) from e
    if not response.is_success:
        raise ApiError(request.method, url, response.status_code, response.text)
    answer: Json = response.json()
    return answer


class MatrixClient:
    """Speaks to one listener of one homeserver, as one user or as nobody."""

    def __init__(self, base_url: str, access_token: str = "") -> None:
        """Make a client; it connects when it is used.

        Args:
            base_url: such as "http://127.0.0.1:8008".
            access_token: whose requests these are; empty for nobody's.
        """
        self.base_url = base_url
        self.access_token = access_token
        # trust_env=False: a proxy of the environment has no place between us and
        # ourselves.
        self.http = httpx.Client(
            base_url=base_url,
            headers=(
                {"Authorization": f"Bearer {access_token}"} if access_token else {}
            ),
            timeout=30,
            trust_env=False,
            verify=NO_AUTHORITIES,
        )

    def close(self) -> None:
        """Close its connections."""
        self.http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, str | int] | None = None,
        timeout_s: float | None = None,
    ) -> Json:
        """Send a request and return the JSON object of its answer.

        Raises:
            ApiError: no answer, or one that is not 2xx.
        """
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        return answer_to(
            self.http.build_request(
                method, path, json=json, params=params, timeout=timeout
            ),
            self.http,
        )

    # The Matrix client-server API.

    def login(self, user: str, password: str) -> User:
        """Log in with a password; this makes a new device and a new token."""
        answer = self.request(
            "POST",
            "/_matrix/client/v3/login",
            json={
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": user},
                "password": password,
            },
        )
        return User(answer["user_id"], answer["access_token"], password)

    def create_room(self, name: str = "", room_version: str = "11") -> str:
        """Create a room that everybody may join, and return its room id."""
        body = {"preset": "public_chat", "room_version": room_version}
        answer = self.request(
            "POST",
            "/_matrix/client/v3/createRoom",
            json=body | ({"name": name} if name else {}),
        )
        return str(answer["room_id"])

    def join(self, room_id: str, via: str = "") -> None:
        """Join a room; over federation through a server that is in it."""
        self.request(
            "POST",
            f"/_matrix/client/v3/join/{quoted(room_id)}",
            params={"server_name": via, "via": via} if via else None,
            json={},
            timeout_s=90,
        )

    def send_message(self, room_id: str, body: str) -> str:
        """Send a text message to a room and return its event id."""
        answer = self.request(
            "PUT",
            f"/_matrix/client/v3/rooms/{quoted(room_id)}/send/m.room.message"
            f"/{uuid.uuid4()}",
            json={"msgtype": "m.text", "body": body},
        )
        return str(answer["event_id"])

    def send_to_device(
        self, user_id: str, body: str, message_type: str = "org.example.playground"
    ) -> None:
        """Send a to-device message to all devices of a user."""
        self.request(
            "PUT",
            f"/_matrix/client/v3/sendToDevice/{message_type}/{uuid.uuid4()}",
            json={"messages": {user_id: {"*": {"body": body}}}},
        )

    def query_keys(self, user_id: str) -> Json:
        """Ask for a user's device keys, over federation if the user is not local.

        This queues nothing for a destination; if that fails, Synapse backs off from it.
        """
        return self.request(
            "POST",
            "/_matrix/client/v3/keys/query",
            json={"device_keys": {user_id: []}},
        )

    def sync(self, since: str | None = None, timeout_ms: int = 0) -> Json:
        """Ask for what is new; wait for at most `timeout_ms` milliseconds for it."""
        params: dict[str, str | int] = {"timeout": timeout_ms}
        if since is not None:
            params["since"] = since
        return self.request(
            "GET",
            "/_matrix/client/v3/sync",
            params=params,
            timeout_s=30 + timeout_ms / 1000,
        )

    # Synapse's admin API.

    def register(
        self, secret: str, localpart: str, password: str, *, admin: bool = False
    ) -> User:
        """Register a user with the homeserver's `registration_shared_secret`."""
        path = "/_synapse/admin/v1/register"
        nonce = self.request("GET", path)["nonce"]
        kind = "admin" if admin else "notadmin"
        signed = "\0".join([nonce, localpart, password, kind]).encode()
        answer = self.request(
            "POST",
            path,
            json={
                "nonce": nonce,
                "username": localpart,
                "password": password,
                "admin": admin,
                # SHA-1 is what Synapse asks for here.
                "mac": hmac.new(secret.encode(), signed, hashlib.sha1).hexdigest(),
            },
        )
        return User(answer["user_id"], answer["access_token"], password)

    def destinations(self, **params: str | int) -> Json:
        """List destinations: one page, as the API gives it."""
        return self.request("GET", f"{FEDERATION}/destinations", params=params)

    def destination(self, server_name: str) -> Json:
        """Read one destination."""
        return self.request("GET", f"{FEDERATION}/destinations/{quoted(server_name)}")

    def reconnect(self, server_name: str, **body: Any) -> Json:
        """Contact a destination, and reconnect it if it answers."""
        return self.request(
            "POST",
            f"{FEDERATION_V2}/destinations/{quoted(server_name)}/reconnect",
            json=body,
            timeout_s=90,
        )

    def last_failure_kinds(self) -> dict[str, str | None]:
        """Return with what the last real request to each failing server failed."""
        answer = self.request(
            "GET",
            "/_synapse/admin/v2/federation/destinations",
            params={"include": "failure", "failing_for": "0s", "limit": 1000},
        )
        return {
            row["destination"]: row["last_failure"] and row["last_failure"]["kind"]
            for row in answer["destinations"]
        }

    def diagnose(self, server_name: str) -> Json:
        """Find out why federation with a server fails."""
        return self.request(
            "POST",
            f"{FEDERATION_V2}/destinations/{quoted(server_name)}/diagnose",
            timeout_s=150,
        )

    def start_run(self, action: str = "reconnect", **body: Any) -> Json:
        """Begin a run."""
        return self.request("POST", f"{FEDERATION_V2}/{action}", json=body)

    def run(self, run_id: str) -> Json:
        """Read a run."""
        return self.request("GET", f"{FEDERATION_V2}/runs/{run_id}")

    def audit(self, **params: str | int) -> list[Json]:
        """Read the whole audit that the filters keep, the newest first."""
        found: list[Json] = []
        while True:
            page = self.request(
                "GET", f"{FEDERATION_V2}/audit", params={"limit": 1000, **params}
            )
            found += page["entries"]
            if "next_token" not in page:
                return found
            params["from"] = page["next_token"]

    def reset_connection(self, server_name: str) -> Json:
        """Reset a failing destination's retry timings."""
        return self.request(
            "POST",
            f"{FEDERATION}/destinations/{quoted(server_name)}/reset_connection",
            json={},
        )
