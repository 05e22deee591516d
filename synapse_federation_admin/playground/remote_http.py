# SPDX-License-Identifier: Apache-2.0
"""What a fake remote homeserver answers, over one connection."""

import json
import re
import time
from http.server import BaseHTTPRequestHandler
from ssl import SSLSocket
from typing import Any
from urllib.parse import unquote, urlsplit

from synapse_federation_admin.playground.records import Behaviour, Records

_SEND = re.compile(r"^/_matrix/federation/v1/send/([^/]+)/?$")

_PAGES = {
    Behaviour.BAD_GATEWAY: (502, b"<html><h1>502 Bad Gateway</h1></html>"),
    Behaviour.NOT_FOUND: (404, b"<html><h1>It works!</h1></html>"),
}
_REFUSALS: dict[Behaviour, tuple[int, dict[str, Any]]] = {
    Behaviour.FORBIDDEN: (
        403,
        {"errcode": "M_FORBIDDEN", "error": "Your server is not on our list"},
    ),
    Behaviour.RATE_LIMITED: (
        429,
        {"errcode": "M_LIMIT_EXCEEDED", "error": "Too many requests"},
    ),
}


class Handler(BaseHTTPRequestHandler):
    """Serves one connection of a remote server, request after request."""

    protocol_version = "HTTP/1.1"
    server_version = "playground"
    # Headers and body in one segment: no wait between them (Nagle, delayed ACK).
    wbufsize = -1

    def __init__(
        self,
        connection: SSLSocket,
        remote: Records,
        behaviour: Behaviour,
    ) -> None:
        """Serve the connection until it ends.

        Args:
            connection: over which TLS is established.
            remote: whose connection it is.
            behaviour: the remote's behaviour when it was accepted.
        """
        self._remote = remote
        self._behaviour = behaviour
        address = connection.getpeername()
        super().__init__(connection, address, remote)  # type: ignore[arg-type]  # the base class only keeps its server, it does not use it

    def do_GET(self) -> None:  # noqa: D102
        self._handle()

    def do_PUT(self) -> None:  # noqa: D102
        self._handle()

    def do_POST(self) -> None:  # noqa: D102
        self._handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: what is seen is recorded by the remote."""

    def _handle(self) -> None:
        behaviour = self._behaviour
        self._remote.saw_request(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if behaviour in _PAGES:
            status, page = _PAGES[behaviour]
            self._answer(status, page, "text/html")
            return
        if behaviour is Behaviour.SLOW:
            time.sleep(self._remote.slowness_s)
        status, answer = self._route(body)
        self._answer(status, json.dumps(answer).encode(), "application/json")

    def _route(self, body: bytes) -> tuple[int, dict[str, Any]]:
        path = urlsplit(self.path).path
        special = self._remote.special(path, body)
        if special is not None:
            return special
        if self._behaviour in _REFUSALS:
            return _REFUSALS[self._behaviour]
        if self._behaviour is Behaviour.TOO_LARGE and b'"pdus":[{' in body:
            return 413, {"errcode": "M_TOO_LARGE", "error": "Too large"}
        if self.command == "GET" and path == "/_matrix/federation/v1/version":
            return 200, {"server": {"name": "playground", "version": "1"}}
        if self.command == "GET" and path == "/_matrix/key/v2/server":
            return 200, self._remote.identity.server_keys()
        sent = _SEND.match(path)
        if self.command == "PUT" and sent:
            self._remote.saw_transaction(unquote(sent.group(1)), json.loads(body))
            return 200, {"pdus": {}}
        return 404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"}

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
