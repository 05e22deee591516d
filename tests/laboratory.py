# SPDX-License-Identifier: Apache-2.0
"""Remote servers that are wrong in one way each, on real sockets with real DNS names.

Each has an address of its own in 127.88.0.0/15 and a name below `lab.example`, which
a DNS server of the laboratory knows. Synapse runs in a mount namespace in which that
is the resolver of the system.
"""

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dns_server import DnsServer
from listener import Listener, requests
from own_resolver import with_resolver

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.events import Identity
from synapse_federation_admin.playground.processes import claim

ZONE = "lab.example"

JSON = b"Content-Type: application/json\r\n"
HTML = b"Content-Type: text/html\r\n"

VERSION = "/_matrix/federation/v1/version"
KEYS = "/_matrix/key/v2/server"
WELL_KNOWN = "/.well-known/matrix/server"

# All of these are one to a laboratory.
SEND = "/_matrix/federation/v1/send/"

# What a responder gives: bytes to send, or something that acts on the connection.
Answer = bytes | Callable[[ssl.SSLSocket], None]
Answers = Mapping[str, Answer]


def http(status: str, body: bytes = b"{}", headers: bytes = JSON) -> bytes:
    """Return an answer."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 " + status.encode() + b"\r\n" + headers + length + b"\r\n" + body


def as_json(content: Any, headers: bytes = b"", status: str = "200 OK") -> bytes:
    return http(status, json.dumps(content).encode(), JSON + headers)


UNRECOGNIZED = as_json(
    {"errcode": "M_UNRECOGNIZED", "error": "No"}, status="404 Not Found"
)


def hang(connection: ssl.SSLSocket) -> None:
    """Take everything and answer nothing."""
    while connection.recv(65536):
        pass


def repeat(data: bytes, first: bytes = b"", every_s: float = 0) -> Answer:
    """Answer without an end."""

    def answer(connection: ssl.SSLSocket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(data)
            time.sleep(every_s)

    return answer


def close(_: ssl.SSLSocket) -> None:
    """Close the connection."""


def homeserver(name: str, **answers: Answer) -> dict[str, Answer]:
    """Return what a homeserver in order answers, but for what is given.

    Args:
        name: Its server name.
        answers: By `version`, `keys`, `send`.
    """
    keys = as_json(Identity(name).server_keys())
    return {
        VERSION: answers.get(
            "version", as_json({"server": {"name": "lab", "version": "1.2"}})
        ),
        KEYS: answers.get("keys", keys),
        SEND: answers.get("send", as_json({"pdus": {}})),
    }


@contextmanager
def full(address: str, port: int) -> Iterator[None]:
    """Have a port at which nobody reacts."""
    # Linux takes one connection more than the backlog, and then ignores who connects.
    with (
        socket.create_server((address, port), backlog=0),
        socket.create_connection((address, port)),
    ):
        yield


class Server:
    """Listens at one address and port, and answers by path."""

    def __init__(
        self,
        address: str,
        port: int,
        context: ssl.SSLContext | None,
        answers: Answers | Answer,
        *,
        latency_s: float = 0,
    ) -> None:
        self.requests: list[tuple[str, str]] = []
        self.names: list[str | None] = []
        self._context = context
        self._answers = answers
        self._latency_s = latency_s
        self.close = Listener(address, port, self._answer).close

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        # The round trip of TCP, of TLS, and of the request.
        time.sleep(self._latency_s * 2)
        if self._context is None:
            self._answer_plainly(connection)
            return
        context = self._context
        context.sni_callback = self._saw_name
        with context.wrap_socket(connection, server_side=True) as secure:
            self._answer_request(secure)

    def _saw_name(self, _: object, name: str | None, __: object) -> None:
        self.names.append(name)

    def _answer_plainly(self, connection: Any) -> None:
        if callable(self._answers):
            self._answers(connection)
        elif isinstance(self._answers, bytes):
            connection.recv(65536)
            connection.sendall(self._answers)
        else:
            self._answer_request(connection)

    def _answer_request(self, connection: Any) -> None:
        request = next(requests(connection), None)
        if request is None:
            return
        path = request.target.partition("?")[0]
        if path.startswith(SEND):
            path = SEND
        self.requests.append((path, request.headers.get("Host", "")))
        time.sleep(self._latency_s)
        answers = self._answers
        answer = (
            answers.get(path, UNRECOGNIZED) if isinstance(answers, Mapping) else answers
        )
        if callable(answer):
            answer(connection)
        else:
            connection.sendall(answer)


class Laboratory:
    """Makes servers, names, and what Synapse needs to meet them."""

    def __init__(self, folder: Path) -> None:
        """Make an empty one.

        Args:
            folder: For files.
        """
        self._stack = ExitStack()
        self.folder = folder
        # Those of tests that run at once differ.
        number = next(n for n in range(1, 250) if claim(f"laboratory {n}"))
        self._number = number
        self.network = f"127.88.{number}"
        self._next = 0
        self.certificates = CertificateAuthority(folder)
        self.authority = self.certificates.ca
        self.dns = DnsServer(f"{self.network}.53")

    def __enter__(self) -> "Laboratory":
        self._stack.enter_context(self.dns)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def wrapper(self) -> list[str]:
        """What starts Synapse with the laboratory's resolver."""
        # A second attempt, for a machine that has much to do.
        options = "options timeout:1 attempts:2"
        return with_resolver(self.folder, self.dns.address, options)

    def address(self) -> str:
        """Return an address that nobody has yet: of this network, or of the next."""
        self._next += 1
        high, low = divmod(self._next, 190)
        assert high < 2
        return f"127.{88 + high}.{self._number}.{60 + low}"

    def hole(self, address: str = "", port: int = 8448) -> str:
        """Return an address at a port of which nobody reacts."""
        address = address or self.address()
        self._stack.enter_context(full(address, port))
        return address

    def serve(
        self,
        address: str,
        port: int,
        answers: Answers | Answer,
        *names: str,
        context: ssl.SSLContext | None = None,
        plain: bool = False,
        **kwargs: Any,
    ) -> Server:
        """Serve, by default with a valid certificate for some names."""
        if context is None and not plain:
            context = self.certificates.valid(*names)
        server = Server(address, port, context, answers, **kwargs)
        self._stack.callback(server.close)
        return server

    def name(self, label: str, *addresses: str) -> str:
        """Give a name addresses."""
        name = f"{label}.{ZONE}"
        self.dns.add(name, "A", *addresses)
        return name
