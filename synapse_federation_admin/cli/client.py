# SPDX-License-Identifier: Apache-2.0
"""Requests to the API."""

import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import quote

import attr
import httpx

from synapse_federation_admin import __version__
from synapse_federation_admin.cli.connection import (
    TOKEN,
    Connection,
    Login,
    checked_token,
    keep_login,
    locked_login,
    read_login,
)
from synapse_federation_admin.cli.errors import failure, reason
from synapse_federation_admin.cli.exits import Exit, FailedError

Json: TypeAlias = dict[str, Any]

V1 = "/_synapse/admin/v1/federation"
V2 = "/_synapse/admin/v2/federation"

# What takes a connection and no TLS, as a port for http, is told after the time to
# connect. A diagnosis and a reconnect may take minutes, if they are configured so.
_TIMEOUT = httpx.Timeout(60, connect=5)
_LONG = httpx.Timeout(180, connect=5)

# How often, and for how long, a request that comes too soon is sent again.
_TRIES = 4
_LONGEST_WAIT_S = 15.0


def segment(name: str) -> str:
    """Return a name as a part of a path."""
    # A dot by itself would be taken away from a path.
    return (
        quote(name, safe="").replace(".", "%2E")
        if set(name) == {"."}
        else quote(name, safe="")
    )


class _Authorization(httpx.Auth):
    """Has requests carry the access token; one that has ended is renewed once."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request, and once more with a new token: see httpx."""
        request.headers["Authorization"] = f"Bearer {self._client.token}"
        response = yield request
        if response.status_code == HTTPStatus.UNAUTHORIZED and self._client.renew():
            request.headers["Authorization"] = f"Bearer {self._client.token}"
            yield request


class Client:
    """Speaks to one homeserver as one user."""

    def __init__(
        self, connection: Connection, transport: httpx.BaseTransport | None = None
    ) -> None:
        """Make a client; it connects when it is used.

        Args:
            connection: Where, and as whom.
            transport: In place of the network.
        """
        self.connection = connection
        socket = connection.socket
        if transport is None and socket is not None:
            transport = httpx.HTTPTransport(uds=socket)
        self._http = httpx.Client(
            base_url="http://localhost" if socket is not None else connection.url,
            headers={
                "User-Agent": f"synapse-federation-admin/{__version__}",
                # Synapse takes no login from nowhere.
                **({} if socket is None else {"X-Forwarded-For": "127.0.0.1"}),
            },
            timeout=_TIMEOUT,
            # A proxy has no place between a machine and itself, and no token to see.
            trust_env=not connection.is_local,
            verify=_trusted(connection),
            transport=transport,
        )
        self._authorization = _Authorization(self)
        self._login, self._token = connection.login, connection.token

    def wait_for(self, seconds: float) -> None:
        """Wait no longer for an answer: somebody sits and waits."""
        self._http.timeout = httpx.Timeout(seconds, connect=min(seconds, 5))

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        """Read something of v2.

        Args:
            path: Below `/_synapse/admin/v2/federation`.
            params: The query; None is left out, a list is repeated.

        Raises:
            FailedError: It was not answered, or with an error.
        """
        return self.call("GET", f"{V2}{path}", params=params)

    def get_if_on(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        """Likewise; nothing where its feature is off, which `status` tells."""
        try:
            return self.get(path, params)
        except FailedError as e:
            if e.answer.get("errcode") != "M_UNKNOWN":
                raise
            return {}

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Have something of v2 done; likewise."""
        return self.call("POST", f"{V2}{path}", body=body or {})

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Json:
        """Send a request with the token, and return the object of its answer.

        Raises:
            FailedError: It was not answered, or with an error.
        """
        for left in reversed(range(_TRIES)):
            with self._told():
                response = self._http.request(
                    method,
                    path,
                    params=_query(params or {}),
                    json=body,
                    auth=self._authorization,
                    timeout=_LONG if method == "POST" else httpx.USE_CLIENT_DEFAULT,
                )
            answer = _object(response)
            wait_s = _asked_to_wait_s(response, answer)
            if wait_s is None or not left:
                break
            time.sleep(wait_s)
        if response.status_code != HTTPStatus.OK or answer is None:
            raise failure(response, answer, self.connection.url)
        return answer

    @contextmanager
    def stream(self, path: str, params: Mapping[str, Any]) -> Iterator[Iterator[str]]:
        """Read something of v2 line by line, as it comes.

        Raises:
            FailedError: It was not answered, with an error, or broke off.
        """
        opened = self._http.stream(
            "GET", f"{V2}{path}", params=_query(params), auth=self._authorization
        )
        with ExitStack() as stack:
            with self._told():
                response = stack.enter_context(opened)
                if response.status_code != HTTPStatus.OK:
                    response.read()
                    raise failure(response, _object(response), self.connection.url)
            yield self._pieces(response)

    def _pieces(self, response: httpx.Response) -> Iterator[str]:
        # What goes wrong with who takes them is no fault of the homeserver.
        with self._told():
            yield from response.iter_text()

    def unauthenticated(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, Json]:
        """Send a request without a token; return the status and the object.

        Args:
            method: The HTTP method.
            path: The path, or a whole URL.
            body: Sent as JSON.
            form: Sent as a form.

        Raises:
            FailedError: It was not answered with an object of JSON.
        """
        response = self.anonymous(method, path, json=body, data=form)
        answer = _object(response)
        if answer is None:
            raise failure(response, answer, self.connection.url)
        return response.status_code, answer

    def anonymous(self, method: str, path: str, **what: Any) -> httpx.Response:
        """Send a request without a token.

        Args:
            method: The HTTP method.
            path: The path, or a whole URL.
            what: What else httpx is to send.

        Raises:
            FailedError: It was not answered.
        """
        with self._told(path if "://" in path else None):
            return self._http.request(method, path, **what)

    def use(self, login: Login) -> None:
        """Go on with another token."""
        self._login, self._token = login, login.access_token

    def renew(self) -> bool:
        """Get a new token, if it is one that ends; tell whether there is one.

        What another command has renewed meanwhile is taken: a refresh token is good
        once.
        """
        login = self._login
        if login is None or not login.renewal:
            return False
        with locked_login() as kept:
            # Somebody may have logged in elsewhere: that token is not for here.
            if kept is None or kept.url != login.url or not kept.renewal:
                return False
            if kept.access_token == login.access_token:
                form = {
                    "grant_type": "refresh_token",
                    "refresh_token": kept.renewal["refresh_token"],
                    "client_id": kept.renewal["client_id"],
                }
                endpoint = kept.renewal["token_endpoint"]
                status, answer = self.unauthenticated("POST", endpoint, form=form)
                if status != HTTPStatus.OK or "access_token" not in answer:
                    return False
                token = str(answer.get("refresh_token") or form["refresh_token"])
                kept = attr.evolve(
                    kept,
                    access_token=checked_token(
                        str(answer["access_token"]), "the answer"
                    ),
                    renewal={**kept.renewal, "refresh_token": token},
                )
                keep_login(kept)
        self.use(kept)
        return True

    @property
    def token(self) -> str:
        """The access token.

        Raises:
            FailedError: There is none.
        """
        if self._token is None:
            kept = read_login()
            other = f" What `login` has kept is for {kept.url}." if kept else ""
            raise FailedError(
                f"There is no access token for {self.connection.url}.{other} Log in"
                f" with `login`, or set {TOKEN} to that of a server admin.",
                Exit.NOT_ALLOWED,
            )
        return self._token

    @contextmanager
    def _told(self, url: str | None = None) -> Iterator[None]:
        """Tell why a request is not answered."""
        url = url or self.connection.url
        try:
            yield
        except httpx.TimeoutException as e:
            why = "does not answer. Is that its URL, and does Synapse run?"
            if "handshake" in str(e):
                why = "takes the connection, but no TLS. Is that a port for http://?"
            raise FailedError(f"{url} {why}", Exit.UNREACHABLE) from e
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as e:
            raise FailedError(
                f"{url} cannot be reached: {reason(e)}", Exit.UNREACHABLE
            ) from e


def _object(response: httpx.Response) -> Json | None:
    """Return the object of JSON that is the answer; None if it is none."""
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _asked_to_wait_s(response: httpx.Response, answer: Json | None) -> float | None:
    """Return for how long to wait before it is sent again; None: not at all."""
    if response.status_code != HTTPStatus.TOO_MANY_REQUESTS or answer is None:
        return None
    told_ms = answer.get("retry_after_ms")
    seconds = told_ms / 1000 if isinstance(told_ms, int | float) else 1.0
    return seconds if 0 <= seconds <= _LONGEST_WAIT_S else None


def _query(params: Mapping[str, Any]) -> httpx.QueryParams:
    """Return a query: None is left out, a list is repeated."""
    found: list[tuple[str, Any]] = []
    for name, value in params.items():
        if isinstance(value, bool):
            found += [(name, str(value).lower())] if value else []
        elif isinstance(value, list | tuple):
            found += [(name, str(each)) for each in value]
        elif value is not None:
            found.append((name, str(value)))
    return httpx.QueryParams(found)


def _trusted(connection: Connection) -> ssl.SSLContext:
    """Return whom to trust: the system's authorities."""
    if connection.is_local and not connection.url.startswith("https:"):
        # To load them takes 25 ms.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Goes by SSL_CERT_FILE and SSL_CERT_DIR, too.
    return ssl.create_default_context()
