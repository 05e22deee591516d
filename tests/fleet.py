# SPDX-License-Identifier: Apache-2.0
"""Thousands of remote servers behind a few sockets, and their rows in the database.

Each has an address of its own in 127.0.0.0/8, by which it is told apart. They answer
nothing but what a contact and a federation sender ask.
"""

import sqlite3
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import attr
from listener import Listener, requests, reset

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.processes import free_port
from synapse_federation_admin.playground.synapse import SynapseServer

HOUR_MS = 3_600_000

# What the path of a contact has in it.
CONTACT = "/send/federation_admin_"

_VERSION = b'{"server": {"name": "fleet", "version": "1"}}'
_TAKEN = b'{"pdus": {}}'


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Seen:
    """A contact or a request that has arrived; `path` is empty if it was dropped."""

    name: str
    monotonic: float
    path: str = ""
    body: str = ""


class Fleet:
    """Servers of three sorts: up, dropping connections, and refusing them.

    What is seen is recorded, of all but those that refuse.
    """

    def __init__(
        self,
        certificates: CertificateAuthority,
        *,
        up: int,
        dropping: int = 0,
        refusing: int = 0,
        delay_s: float = 0,
    ) -> None:
        self._delay_s = delay_s
        self._ports = [free_port() for _ in range(3)]
        counts = (up, dropping, refusing)
        self.up, self.dropping, self.refusing = (
            _names(block, count, port)
            for block, (count, port) in enumerate(
                zip(counts, self._ports, strict=True), 1
            )
        )
        self.seen: list[Seen] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if up:
            self._context = certificates.valid(*(n.split(":")[0] for n in self.up))
        self._stack = ExitStack()

    @property
    def names(self) -> list[str]:
        return [*self.up, *self.dropping, *self.refusing]

    @property
    def contacts(self) -> "Counter[str]":
        """How often each was contacted: by a connection, or by an empty transaction."""
        return Counter(s.name for s in self.seen if not s.path or CONTACT in s.path)

    def received(self, text: str) -> set[str]:
        """Return who has received a transaction with a text in it."""
        return {s.name for s in self.seen if "/send/" in s.path and text in s.body}

    def __enter__(self) -> "Fleet":
        up_port, dropping_port, _ = self._ports
        for port, serve in ((up_port, self._answer), (dropping_port, self._drop)):
            self._stack.enter_context(Listener("0.0.0.0", port, serve, backlog=1000))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _record(self, connection: Any, path: str = "", body: str = "") -> None:
        host, port = connection.getsockname()
        self.seen.append(Seen(f"{host}:{port}", time.monotonic(), path, body))

    def _answer(self, connection: Any) -> None:
        with self._context.wrap_socket(connection, server_side=True) as secure:
            for request in requests(secure):
                body = request.body.decode("utf-8", "replace")
                self._record(secure, request.target, body)
                time.sleep(self._delay_s)
                answer = _TAKEN if "/send/" in request.target else _VERSION
                secure.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(answer), answer)
                )

    def _drop(self, connection: Any) -> None:
        self._record(connection)
        reset(connection)


def _names(block: int, count: int, port: int) -> list[str]:
    return [
        f"127.{block}.{number // 250}.{number % 250 + 1}:{port}"
        for number in range(count)
    ]


def write_failing(
    synapse: SynapseServer, names: Iterable[str], *, failing_since_ts: int
) -> None:
    """Write rows of destinations that are failing, with a day of backoff left."""
    now_ms = int(time.time() * 1000)
    rows = [
        f"('{name}', {now_ms - HOUR_MS}, {25 * HOUR_MS}, {failing_since_ts + number})"
        for number, name in enumerate(names)
    ]
    columns = "destination, retry_last_ts, retry_interval, failure_ts"
    for begin in range(0, len(rows), 1000):
        values = ", ".join(rows[begin : begin + 1000])
        select(synapse, f"INSERT INTO destinations ({columns}) VALUES {values}")


def read_rows(synapse: SynapseServer) -> dict[str, Sequence[int | None]]:
    """Return all rows of `destinations`, by name."""
    columns = "destination, retry_last_ts, retry_interval, failure_ts"
    rows = select(synapse, f"SELECT {columns} FROM destinations")
    return {
        row[0]: tuple(int(value) if value else None for value in row[1:])
        for row in rows
    }


def select(synapse: SynapseServer, statement: str) -> list[Sequence[str]]:
    """Run a statement in the database of a Synapse; return rows of texts."""
    if synapse.postgres is not None and synapse.database is not None:
        text = synapse.postgres.execute(synapse.database, statement)
        return [line.split("|") for line in text.splitlines()]
    database = sqlite3.connect(synapse.folder / "homeserver.db", timeout=30)
    with closing(database) as connection, connection:
        return [
            ["" if value is None else str(value) for value in row]
            for row in connection.execute(statement)
        ]
