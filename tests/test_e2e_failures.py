# SPDX-License-Identifier: Apache-2.0
"""A thousand real failures of real requests, on every process, each of them recorded.

The truth is Synapse's own log: it has a line for each failure after which it backs off.
"""

import itertools
import os
import random
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attr
import pytest
from fleet import select
from laboratory import Laboratory
from synapse.config.workers import ShardedWorkerHandlingConfig
from test_e2e_failure_kinds import ADDRESS, BLOCKED, FAULTS, FaultyServer, contexts

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import FEDERATION_V2, MatrixClient
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
)
from synapse_federation_admin.playground.processes import (
    PlaygroundError,
    free_port,
    wait_until,
)
from synapse_federation_admin.playground.remote import RemoteServer
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

SHARDS = ShardedWorkerHandlingConfig(list(FEDERATION_SENDERS))
ASKING = (MAIN, GENERIC_WORKER)
PROCESSES = (*ASKING, *FEDERATION_SENDERS)

# How many failures there have to be, and how many of each destination.
ALL = 1000
EACH = 3

# How far a time that is recorded may be from that of the line in the log.
CLOSE_MS = 50

# How long what is recorded may wait in memory, and how much of it `kill -9` may take.
WRITTEN_S = 6
LOST_S = 5

CONFIG = {
    "federation_ip_range_blacklist": ["127.9.0.0/16", "127.0.0.1/32", "::1/128"],
    "federation": {
        "client_timeout": "3s",
        "max_short_retries": 0,
        "max_long_retries": 0,
        "destination_min_retry_interval": 200,  # ms
        "destination_max_retry_interval": 200,
    },
}

KILLED = (GENERIC_WORKER, FEDERATION_SENDERS[0])

# By what the servers do wrong, or what is wrong with their names.
KINDS = {
    "blocked address": "ip_blocked",
    "blocked by name": "ip_blocked",
    "no such name": "dns_not_found",
    "DNS fails": "dns_failed",
    "refused": "connection_refused",
    "full": "connection_timeout",
    "nowhere": "unreachable",
    "expired": "tls_expired",
    "not yet valid": "tls_not_yet_valid",
    "wrong name": "tls_wrong_name",
    "other authority": "tls_untrusted",
    "self-signed": "tls_untrusted",
    "no TLS": "tls_failed",
    "401": "rejected",
    "429": "rate_limited",
    "410": "gone",
    "403": "rejected",
    "404": "http_error",
    "502 in HTML": "http_error",
    "mute": "response_timeout",
    "closes": "invalid_response",
    "no HTTP": "invalid_response",
}
# After these Synapse backs off only if it was sending.
SENT_ONLY = {"410", "403", "404"}
# What needs a DNS server of our own.
IN_LABORATORY = {"DNS fails"}
# Of which there is a destination that several processes meet.
SHARED = ("refused", "expired", "429")

_LINE = re.compile(
    r"^\S+ \S+ - synapse\.util\.retryutils - \d+ - INFO - .*? - "
    r"Connection to (\S+) was unsuccessful \("
)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Told:
    """A line in which Synapse says that a request failed."""

    process: str
    destination: str
    ts: float


@attr.s(slots=True, auto_attribs=True)
class Cluster:
    synapse: SynapseServer
    client: MatrixClient
    askers: dict[str, MatrixClient]
    healthy: str
    # By process, or "shared": the names of destinations, and what is wrong with them.
    names: dict[str, dict[str, str]]

    @property
    def faults(self) -> dict[str, str]:
        return {name: what for one in self.names.values() for name, what in one.items()}

    def names_of(self, process: str) -> list[str]:
        return [*self.names[process], *self.names["shared"]]

    def told(self) -> list[Told]:
        """Return what Synapse has said, in the order of each process."""
        found = []
        for process in PROCESSES:
            log = (self.synapse.folder / f"{process}.log").read_text("utf-8", "replace")
            for line in log.splitlines():
                match = _LINE.match(line)
                if match:
                    found.append(Told(process, match[1], _ts(line)))
        return found

    def said(self, process: str, text: str) -> float:
        """Return when a process said something for the first time."""
        log = (self.synapse.folder / f"{process}.log").read_text("utf-8", "replace")
        return next(_ts(line) for line in log.splitlines() if text in line)

    def counts(self) -> dict[str, int]:
        """Return how many failures of each destination are recorded."""
        rows = select(
            self.synapse,
            "SELECT destination, SUM(count) FROM federation_admin_failures GROUP BY 1",
        )
        return {name: int(count) for name, count in rows}

    def ask(self, process: str) -> None:
        """Have a process ask all of its destinations for keys."""
        self.askers[process].request(
            "POST",
            "/_matrix/client/v3/keys/query",
            params={"timeout": 2000},
            json={"device_keys": {f"@x:{name}": [] for name in self.names_of(process)}},
        )

    def send(self, _: str = "") -> None:
        """Have the senders send to all of their destinations."""
        self.client.request(
            "PUT",
            f"/_matrix/client/v3/sendToDevice/org.example/{time.monotonic_ns()}",
            json={
                "messages": {
                    f"@x:{name}": {"*": {"a": 1}}
                    for sender in FEDERATION_SENDERS
                    for name in self.names_of(sender)
                }
            },
        )


def _ts(line: str) -> float:
    """Return when a line was logged, in ms since the epoch."""
    when = datetime.strptime(line.partition(" - ")[0], "%Y-%m-%d %H:%M:%S,%f")
    return when.timestamp() * 1000


class Load:
    """Makes requests again and again, in threads, while it is entered."""

    def __init__(self, cluster: Cluster) -> None:
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(make, process))
            for make, process in (
                (cluster.ask, MAIN),
                (cluster.ask, GENERIC_WORKER),
                (cluster.send, ""),
            )
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(40)

    def _repeat(self, make: Callable[[str], None], process: str) -> None:
        while not self._over.wait(0.3):
            # The process may have been killed.
            with suppress(PlaygroundError):
                make(process)


class WholeServer(FaultyServer):
    """Reads all of a request before it answers.

    If it closed the connection earlier, its answer might be lost.
    """

    def _answer(self, connection: socket.socket) -> None:
        if self._context is not None:
            connection = self._context.wrap_socket(connection, server_side=True)
        with connection:
            head, _, body = self._read(connection, b"").partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
            while length and len(body) < int(length[1]):
                body = self._read(connection, body)
            connection.sendall(self._fault.answer or b"")

    @staticmethod
    def _read(connection: socket.socket, data: bytes) -> bytes:
        new = connection.recv(65536)
        if not new:
            raise OSError("closed")
        return data + new


class World:
    """Makes servers that are wrong, and names that lead nowhere."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._number = itertools.count()
        self.wrapper: list[str] = []
        self._laboratory: Laboratory | None = None
        if os.geteuid() == 0:
            self._laboratory = stack.enter_context(Laboratory(folder))
            self.wrapper = self._laboratory.wrapper
            self.certificates = self._laboratory.certificates
        else:
            self.certificates = CertificateAuthority(folder)
        self._contexts = contexts(folder, self.certificates)

    def names(self, fits: Callable[[str], bool], *, sent: bool) -> dict[str, str]:
        """Make one destination of each kind for a process.

        Args:
            fits: Tells whether the process deals with a name.
            sent: Whether it sends to them.
        """
        found = {}
        for what in KINDS:
            if what in SENT_ONLY and not sent:
                continue
            if what in IN_LABORATORY and self._laboratory is None:
                continue
            found[self.fitting(what, fits)] = what
        return found

    def fitting(self, what: str, fits: Callable[[str], bool]) -> str:
        while True:
            name = self._make(what)
            if fits(name):
                return name

    def _make(self, what: str) -> str:
        number = next(self._number)
        if what == "blocked address":
            return f"{BLOCKED}:{8000 + number}"
        if what == "blocked by name":
            return f"localhost:{8000 + number}"
        if what == "no such name":
            return f"nosuch{number}.invalid:8448"
        if what == "DNS fails":
            # Without a port: Synapse asks for SRV records.
            assert self._laboratory is not None
            name = self._laboratory.name(f"fails{number}", ADDRESS)
            for service in ("_matrix-fed", "_matrix"):
                self._laboratory.dns.records[f"{service}._tcp.{name}", "SRV"] = (
                    "SERVFAIL"
                )
            return name
        if what == "refused":
            return f"{ADDRESS}:{free_port(ADDRESS)}"
        if what == "nowhere":
            # Where the kernel has no route to.
            return f"224.0.0.1:{8000 + number}"
        if what in ("full", "mute"):
            backlog = 0 if what == "full" else 100
            server = self._stack.enter_context(
                socket.create_server((ADDRESS, free_port(ADDRESS)), backlog=backlog)
            )
            if what == "full":
                # Linux takes one more than that, and then ignores who connects.
                self._stack.enter_context(
                    socket.create_connection(server.getsockname())
                )
            return f"{ADDRESS}:{server.getsockname()[1]}"
        fault = FAULTS[what]
        made = self._contexts[fault.certificate] if fault.certificate else None
        faulty = (WholeServer if made else FaultyServer)(fault, made)
        self._stack.callback(faulty.close)
        return faulty.name


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four processes, and for each a destination of each kind."""
    folder = tmp_path_factory.mktemp("failures")
    with ExitStack() as stack:
        world = World(folder, stack)
        names = {process: world.names(lambda _: True, sent=False) for process in ASKING}
        for sender in FEDERATION_SENDERS:
            names[sender] = world.names(
                lambda name, sender=sender: SHARDS.should_handle(sender, name),
                sent=True,
            )
        names["shared"] = {world.fitting(w, lambda _: True): w for w in SHARED}
        healthy = stack.enter_context(RemoteServer("127.0.0.69", world.certificates))
        synapse = stack.enter_context(
            SynapseServer(
                folder / "synapse",
                world.certificates,
                workers=True,
                extra_config=CONFIG,
                wrapper=world.wrapper,
            )
        )
        admin = synapse.create_user("admin", admin=True)
        askers = {
            process: synapse.client(synapse.create_user(process), process)
            for process in ASKING
        }
        yield Cluster(
            synapse, synapse.client(admin), askers, healthy.server_name, names
        )


@pytest.fixture(scope="module")
def told(cluster: Cluster) -> list[Told]:
    """A thousand failures, made while other requests go on, and all written."""

    def enough() -> bool:
        told = cluster.told()
        each = Counter(line.destination for line in told)
        return len(told) >= ALL and all(each[name] >= EACH for name in cluster.faults)

    began = time.monotonic()
    with Load(cluster):
        for process in ASKING:
            client = cluster.askers[process]
            for _ in range(5):
                client.http.get(f"/_matrix/client/v3/profile/@x:{cluster.healthy}")
        wait_until(lambda: len(cluster.told()) > ALL / 2, "failures", 60, 0.5)
        some = random.sample(sorted(cluster.names[MAIN]), 5)
        for name in some:
            answer = cluster.client.reconnect(name, timeout_ms=1000)
            assert answer["outcome"] in ("still_failing", "pending")
        cluster.client.diagnose(some[0])
        wait_until(enough, "enough failures", 90, 0.5)
    print(f"{time.monotonic() - began:.1f} s for the failures")
    told: list[Told] = []

    def settled() -> bool:
        # Some requests were still under way.
        before = len(told)
        told[:] = cluster.told()
        return len(told) == before

    wait_until(settled, "the last requests to fail", 30, 3.5)
    wait_until(
        lambda: sum(cluster.counts().values()) >= len(told), "all to be written", 30
    )
    return told


def test_every_failure(cluster: Cluster, told: list[Told]) -> None:
    """Each of a thousand failures is recorded, as what it is, and when it was.

    On four processes, of all kinds that real traffic has; what several of them meet is
    one row. What Synapse does not back off after is not recorded, and nor are
    reconnects and diagnoses.
    """
    lines: dict[str, list[Told]] = defaultdict(list)
    for line in told:
        lines[line.destination].append(line)
    assert len(told) >= ALL
    assert cluster.healthy not in lines
    assert {line.process for line in told} == set(PROCESSES)
    assert cluster.counts() == {name: len(found) for name, found in lines.items()}

    farthest_ms = 0.0
    for name, what in cluster.faults.items():
        body = cluster.client.request(
            "GET", f"{FEDERATION_V2}/destinations/{quote(name, safe='')}"
        )
        (failure,) = body["failures"]
        assert body["last_failure"] == failure
        assert failure["kind"] == KINDS[what], (name, what, failure)
        found = sorted(lines[name], key=lambda line: line.ts)
        assert failure["count"] == len(found)
        for ts, line in (
            (failure["first_ts"], found[0]),
            (failure["last_ts"], found[-1]),
        ):
            farthest_ms = max(farthest_ms, abs(ts - line.ts))
            assert abs(ts - line.ts) <= CLOSE_MS, (name, failure, line)
        assert failure["instance"] == found[-1].process, (name, found[-1])
    for name in cluster.names["shared"]:
        assert {*ASKING} < {line.process for line in lines[name]}
    by_process = Counter(line.process for line in told)
    kinds = {KINDS[cluster.faults[name]] for name in lines}
    assert len(kinds) >= 14
    print(f"{len(told)} failures of {len(kinds)} kinds on {dict(by_process)}")
    print(f"at most {farthest_ms:.0f} ms from the lines of the log")


def test_list(cluster: Cluster, told: list[Told]) -> None:
    """The list has the last failure of each, and finds them by kind."""
    listed: dict[str, Any] = {}
    page = cluster.client.request(
        "GET",
        f"{FEDERATION_V2}/destinations",
        params={"include": "failure", "limit": 1000},
    )
    for row in page["destinations"]:
        listed[row["destination"]] = row["last_failure"]
    for name, what in cluster.faults.items():
        assert listed[name]["kind"] == KINDS[what]
    for kind in set(KINDS.values()):
        found = cluster.client.request(
            "GET",
            f"{FEDERATION_V2}/destinations",
            params={"failure": kind, "limit": 1000},
        )["destinations"]
        expected = {n for n, what in cluster.faults.items() if KINDS[what] == kind}
        assert {row["destination"] for row in found} == expected, kind


# What a client may ask of a homeserver so that this asks another one: with the other's
# name, and which process that is if the client asks the worker.
WAYS: dict[str, tuple[str, str, Any, str]] = {
    "keys": (
        *("POST", "/_matrix/client/v3/keys/query"),
        *({"device_keys": {"@x:{}": []}}, GENERIC_WORKER),
    ),
    "claim": (
        *("POST", "/_matrix/client/v3/keys/claim"),
        *({"one_time_keys": {"@x:{}": {"D": "signed_curve25519"}}}, GENERIC_WORKER),
    ),
    # The main process joins for the worker.
    "join": ("POST", "/_matrix/client/v3/join/!x:a?server_name={}", {}, MAIN),
    "media": ("GET", "/_matrix/client/v1/media/download/{}/x", None, GENERIC_WORKER),
    # Of these Synapse asks whether it is backing off or not, and backs off from none.
    "profile": ("GET", "/_matrix/client/v3/profile/@x:{}", None, ""),
    "public rooms": ("GET", "/_matrix/client/v3/publicRooms?server={}", None, ""),
    "alias": ("GET", "/_matrix/client/v3/directory/room/%23x:{}", None, ""),
}
BACKS_OFF = ("keys", "claim", "join", "media")


@pytest.mark.parametrize("process", ASKING)
def test_ways(cluster: Cluster, told: list[Told], process: str) -> None:
    """Whatever makes a process ask another server: what it backs off after is seen."""
    names = {}
    for way, (method, path, body, _) in WAYS.items():
        name = names[way] = f"{ADDRESS}:{free_port(ADDRESS)}"
        filled = {
            key: {each.replace("{}", name): value for each, value in content.items()}
            for key, content in (body or {}).items()
        }
        cluster.askers[process].http.request(
            method, path.replace("{}", name), json=None if body is None else filled
        )
    expected = {
        names[way]: MAIN if process == MAIN else WAYS[way][3] for way in BACKS_OFF
    }
    new = cluster.told()
    found = {
        line.destination: line.process
        for line in new
        if line.destination in names.values()
    }
    assert found == expected, {way: found.get(name) for way, name in names.items()}
    each = Counter(line.destination for line in new)

    def written() -> bool:
        counts = cluster.counts()
        return all(counts.get(name) == each[name] for name in expected)

    wait_until(written, "all to be written", WRITTEN_S)
    assert not cluster.counts().keys() & (names.values() - expected.keys())
    for name, instance in expected.items():
        body = cluster.client.request("GET", f"{FEDERATION_V2}/destinations/{name}")
        (failure,) = body["failures"]
        assert (failure["kind"], failure["instance"]) == (
            "connection_refused",
            instance,
        )


def test_killed_and_stopped(cluster: Cluster, told: list[Told]) -> None:
    """Of a process that is killed at most the last five seconds are lost.

    Of one that is stopped in an orderly way, nothing of what came before is.
    """
    synapse = cluster.synapse
    ended_ts: dict[str, float] = {}
    with Load(cluster):
        time.sleep(3)
        for name in KILLED:
            time.sleep(random.uniform(0, 3))
            ended_ts[name] = time.time() * 1000
            synapse.process(name).kill()
        for name in (FEDERATION_SENDERS[1], MAIN):
            time.sleep(random.uniform(0, 2))
            synapse.stop(name)
            # What is under way then Synapse breaks off itself.
            ended_ts[name] = cluster.said(name, "Received SIGTERM, shutting down")
    lines, counts = cluster.told(), cluster.counts()
    processes: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        processes[line.destination].add(line.process)
    for process in PROCESSES:
        may_lose_ms = LOST_S * 1000 if process in KILLED else 0
        all_, safe = Counter[str](), Counter[str]()
        for line in lines:
            if processes[line.destination] == {process}:
                all_[line.destination] += 1
                safe[line.destination] += line.ts < ended_ts[process] - may_lose_ms
        kept = {name: counts.get(name, 0) for name in all_}
        for name, count in all_.items():
            assert safe[name] <= kept[name] <= count, (process, name)
        lost, risked = all_.total() - sum(kept.values()), all_.total() - safe.total()
        print(f"{process}: {lost} lost of {all_.total()}, {risked} of them at risk")
    assert len(lines) > len(told) + 100
