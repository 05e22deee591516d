# SPDX-License-Identifier: Apache-2.0
"""Long answers of a real Synapse on PostgreSQL, to slow and to vanishing readers."""

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import attr
import httpx
import psutil
import pytest
from fleet import select
from real_synapse import Admin, RealSynapse

from synapse_federation_admin import limits
from synapse_federation_admin.playground.client import FEDERATION
from synapse_federation_admin.playground.processes import free_port, wait_until

pytestmark = pytest.mark.e2e

ROWS = 100_000
METRICS_PORT = free_port()
EXPORT = "/_synapse/admin/v2/federation/destinations/export"
LISTS = [
    f"{FEDERATION}/destinations?limit=99999999",
    f"{EXPORT}?format=ndjson",
    f"{EXPORT}?format=csv",
]


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Homeserver:
    """A homeserver with many destinations, and its admin."""

    synapse: RealSynapse
    client: Admin

    def transactions(self) -> int:
        """Return how many transactions lists have taken so far."""
        metrics = httpx.get(f"http://127.0.0.1:{METRICS_PORT}/_synapse/metrics").text
        pattern = (
            r"synapse_storage_transaction_time_count_total\{[^}]*"
            r'desc="federation_admin_list_destinations"[^}]*\} ([0-9.e+]+)'
        )
        return sum(int(float(value)) for value in re.findall(pattern, metrics))

    def wait_until_quiet(self) -> int:
        """Wait until lists take no transaction for a while; return how many it was."""

        def quiet() -> int | None:
            before = self.transactions()
            time.sleep(0.5)
            return before if self.transactions() == before else None

        return wait_until(quiet, "the lists to end, or to wait for their readers", 90)

    @contextmanager
    def ask(
        self, path: str, receive_buffer: int = 4096, version: str = "1.1"
    ) -> Iterator[socket.socket]:
        """Send a GET, and leave it to the caller to read the answer."""
        port = self.synapse.layout.client_ports["main"]
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", port))
            connection.sendall(
                f"GET {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n"
                f"Authorization: Bearer {self.client.access_token}\r\n\r\n".encode()
            )
            yield connection


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    with RealSynapse(
        tmp_path_factory.mktemp("long"),
        postgres=True,
        extra_config={"enable_metrics": True},
        extra_listeners=[
            {"type": "metrics", "port": METRICS_PORT, "bind_addresses": ["127.0.0.1"]}
        ],
    ) as synapse:
        select(
            synapse,
            "INSERT INTO destinations (destination, retry_last_ts, failure_ts)"
            " SELECT md5(n::text) || '.example', n % 3, n % 5"
            f" FROM generate_series(1, {ROWS}) AS n",
        )
        select(synapse, "ANALYZE destinations")
        yield Homeserver(synapse, synapse.as_admin())


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def body_of(answer: bytes) -> bytes:
    """Return the body of an answer in chunks; fail if the last one is missing."""
    rest = answer.partition(b"\r\n\r\n")[2]
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return body
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


@pytest.mark.one_synapse
@pytest.mark.parametrize("path", LISTS)
def test_slow_reader(homeserver: Homeserver, path: str) -> None:
    """One who reads slowly gets everything, and costs no memory and no transaction."""
    process = psutil.Process(homeserver.synapse.process("main").pid)
    # Whatever memory it takes once, it has taken then.
    homeserver.client.destinations(limit=ROWS)
    before = process.memory_info().rss
    with homeserver.ask(path) as connection:
        begun = homeserver.transactions()
        head = connection.recv(1000)
        stalled = homeserver.wait_until_quiet()
        # Less than half of it has been read: what the sockets hold, and a little more.
        assert stalled - begun < ROWS / 4000 / 2
        # A transaction left open would hold this up.
        lock = "SET lock_timeout = '10s'; LOCK TABLE destinations"
        select(homeserver.synapse, lock)
        assert process.memory_info().rss - before < 16 << 20
        answer = head + read_all(connection)
    text = body_of(answer).decode()
    names = re.findall(r"[0-9a-f]{32}\.example", text)
    assert len(names) == len(set(names)) == ROWS
    assert names == sorted(names)
    if "limit" in path:
        assert json.loads(text)["total"] == ROWS
    else:
        assert b"Content-Disposition: attachment" in answer[:2000]
    assert process.memory_info().rss - before < 32 << 20


@pytest.mark.one_synapse
@pytest.mark.parametrize("path", LISTS)
def test_vanishing_reader(homeserver: Homeserver, path: str) -> None:
    """When the reader goes away, the work ends within one piece."""
    with homeserver.ask(path) as connection:
        connection.recv(1000)
        stalled = homeserver.wait_until_quiet()
    assert homeserver.wait_until_quiet() <= stalled + 1
    assert "Traceback" not in homeserver.synapse.log_tail(lines=50)


def test_many_vanishing_readers(homeserver: Homeserver) -> None:
    """Fifty that go away at any moment leave nothing behind that hinders the next."""

    def vanish(number: int) -> None:
        with homeserver.ask(LISTS[number % len(LISTS)]) as connection:
            time.sleep(number % 7 / 20)
            if number % 2:
                connection.recv(100_000)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(vanish, range(50)))
    homeserver.wait_until_quiet()
    # Nothing goes on after its request, in nobody's log context.
    log = (homeserver.synapse.folder / "main.log").read_text()
    for complaint in ("GeneratorExit", "sentinel context", "Re-starting finished"):
        assert complaint not in log
    with homeserver.ask(LISTS[0], 1 << 20) as connection:
        assert json.loads(body_of(read_all(connection)))["total"] == ROWS


@pytest.mark.one_synapse
def test_many_who_do_not_read(homeserver: Homeserver) -> None:
    """However many do not read, a few are served; memory is bounded, and given back.

    The others are told when to come again; then one who takes nothing makes room.
    """
    process = psutil.Process(homeserver.synapse.process("main").pid)
    homeserver.client.destinations(limit=ROWS, order_by="retry_last_ts")
    before = process.memory_info().rss
    paths = [LISTS[1], LISTS[2], f"{LISTS[0]}&order_by=retry_last_ts&dir=b"]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(homeserver.ask(paths[number % 3]))
            for number in range(200)
        ]
        heads = [reader.recv(1000) for reader in readers]
        homeserver.wait_until_quiet()
        assert process.memory_info().rss - before < 100 << 20
        served = [head for head in heads if head.startswith(b"HTTP/1.1 200 ")]
        assert len(served) == limits.LONG_ANSWERS
        for head in heads:
            if head not in served:
                assert head.startswith(b"HTTP/1.1 429 "), head
                assert b"\r\nRetry-After: " in head, head
                assert b"M_LIMIT_EXCEEDED" in head, head

        def is_served() -> bool:
            with homeserver.ask(LISTS[0], 1 << 20) as connection:
                head = connection.recv(1000)
                if not head.startswith(b"HTTP/1.1 200 "):
                    return False
                body = body_of(head + read_all(connection))
                return json.loads(body)["total"] == ROWS  # type: ignore[no-any-return]

        wait_until(is_served, "room", 2 * limits.CLIENT_PAUSE_WHILE_FULL_S)
    homeserver.wait_until_quiet()
    assert process.memory_info().rss - before < 50 << 20
    # One that ends makes room at once.
    assert is_served()


@pytest.mark.one_synapse
def test_turns(homeserver: Homeserver) -> None:
    """Answers that are long only by their `limit` are all given, twenty at once."""
    ask = homeserver.client.destinations
    with ThreadPoolExecutor(20) as pool:
        pages = [
            pool.submit(ask, limit=ROWS, destination="no-such-name") for _ in range(50)
        ]
    assert [page.result()["total"] for page in pages] == [0] * 50


def test_http_1_0(homeserver: Homeserver) -> None:
    """A client of HTTP/1.0 gets the whole list, up to the end of the connection."""
    with homeserver.ask(LISTS[0], 1 << 20, version="1.0") as connection:
        answer = read_all(connection)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["total"] == ROWS


# Last, for it stops the database.
def test_database_fails_half_way(homeserver: Homeserver) -> None:
    """A failure half-way cuts the connection: the answer never looks complete."""
    with ExitStack() as stack:
        readers = [stack.enter_context(homeserver.ask(path)) for path in LISTS]
        heads = [reader.recv(1000) for reader in readers]
        homeserver.wait_until_quiet()
        assert homeserver.synapse.postgres is not None
        homeserver.synapse.postgres.stop()
        for reader, head in zip(readers, heads, strict=True):
            assert head.startswith(b"HTTP/1.1 200 ")
            try:
                rest = read_all(reader)
            except ConnectionResetError:
                rest = b""
            assert not (head + rest).endswith(b"\r\n0\r\n\r\n")
