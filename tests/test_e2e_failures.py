# SPDX-License-Identifier: Apache-2.0
"""A thousand real failures of real requests, on every process, each of them recorded.

The truth is Synapse's own log: it has a line for each failure after which it backs off.
"""

import itertools
import random
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any

import attr
import pytest
from faults import BAD_GATEWAY, BLOCKED, told_as
from fleet import select
from laboratory import Answer, Server, close, full, hang, http
from real_synapse import SHARDS, Admin, RealSynapse

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
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

pytestmark = pytest.mark.e2e

ASKING = (MAIN, GENERIC_WORKER)
PROCESSES = (*ASKING, *FEDERATION_SENDERS)

# How many failures there have to be, and how many of each destination.
ALL = 1000
EACH = 3

# How far a time that is recorded may be from that of the line in the log: on a busy
# machine some 65 ms pass between the two, and seconds between two failures of one.
CLOSE_MS = 500

# How much of what waits in memory to be written `kill -9` may take.
LOST_S = 5

CONFIG = {
    "federation_ip_range_blacklist": [f"{BLOCKED}/32"],
    "federation": {
        "client_timeout": "3s",
        "max_short_retries": 0,
        "max_long_retries": 0,
        "destination_min_retry_interval": 200,  # ms
        "destination_max_retry_interval": 200,
    },
}

KILLED = (GENERIC_WORKER, FEDERATION_SENDERS[0])

# Where the servers are.
ADDRESS = "127.0.0.70"

OK, HUNG = http("200 OK"), "response_timeout"

# By what a server does wrong: what that is to be called, what it answers, and which
# certificate it has, if it speaks TLS.
FAULTS: dict[str, tuple[str, Answer, str]] = {
    "expired": ("tls_expired", OK, "expired"),
    "wrong name": ("tls_wrong_name", OK, "wrong name"),
    "no TLS": ("tls_failed", OK, ""),
    "handshake": (HUNG, hang, ""),
    "401": ("rejected", http("401 Unauthorized"), "valid"),
    "429": ("rate_limited", http("429 Too Many Requests"), "valid"),
    "502 in HTML": ("http_error", BAD_GATEWAY, "valid"),
    "closes": ("invalid_response", close, "valid"),
}

# And by what is wrong with a name.
KINDS = {
    "blocked": "ip_blocked",
    "no such name": "dns_not_found",
    "refused": "connection_refused",
    "no route": "unreachable",
    "dropped": "connection_timeout",
    **{what: kind for what, (kind, _, _) in FAULTS.items()},
}
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
    synapse: RealSynapse
    client: Admin
    askers: dict[str, MatrixClient]
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

    def counts(self) -> dict[str, int]:
        """Return how many failures of each destination are recorded."""
        rows = select(
            self.synapse,
            "SELECT destination, SUM(count) FROM federation_admin_failures GROUP BY 1",
        )
        return {name: int(count) for name, count in rows}

    def failures(self, name: str) -> list[Any]:
        """Return what the detail of a destination has of its failures."""
        body = self.client.detail(name)
        assert body["last_failure"] == body["failures"][0]
        return body["failures"]  # type: ignore[no-any-return]

    def ask(self, process: str) -> None:
        """Have a process ask all of its destinations for keys."""
        self.askers[process].request(
            "POST",
            "/_matrix/client/v3/keys/query",
            params={"timeout": 2000},
            json={"device_keys": {f"@x:{name}": [] for name in self.names_of(process)}},
        )

    def send(self) -> None:
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


@contextmanager
def load(cluster: Cluster) -> Iterator[None]:
    """Make requests again and again, in threads, while it is entered."""
    over = threading.Event()

    def repeat(make: Callable[[], None]) -> None:
        while not over.wait(0.3):
            # The process may have been killed.
            with suppress(PlaygroundError):
                make()

    with ThreadPoolExecutor() as pool:
        for make in (
            *(partial(cluster.ask, process) for process in ASKING),
            cluster.send,
        ):
            pool.submit(repeat, make)
        try:
            yield
        finally:
            over.set()


class Faults:
    """Makes servers that are wrong, and names that lead nowhere."""

    def __init__(self, certificates: CertificateAuthority, stack: ExitStack) -> None:
        self._stack = stack
        self._contexts = {
            "": None,
            "valid": certificates.valid(ADDRESS),
            "expired": certificates.expired(ADDRESS),
            "wrong name": certificates.wrong_name(),
        }
        ports = itertools.count(8000)
        # One at each call.
        self._names = {
            "blocked": lambda: f"{BLOCKED}:{next(ports)}",
            "no such name": lambda: f"nosuch{next(ports)}.invalid:8448",
            "refused": lambda: f"{ADDRESS}:{free_port(ADDRESS)}",
            # Where the kernel has no route to.
            "no route": lambda: f"224.0.0.1:{next(ports)}",
        }

    def names(
        self, kinds: Iterable[str], fits: Callable[[str], bool] = lambda _: True
    ) -> dict[str, str]:
        """Make a destination of each kind; `fits` tells which names will do."""
        return {
            next(filter(fits, map(self._make, itertools.repeat(what)))): what
            for what in kinds
        }

    def _make(self, what: str) -> str:
        if what in self._names:
            return self._names[what]()
        port = free_port(ADDRESS)
        if what == "dropped":
            self._stack.enter_context(full(ADDRESS, port))
        else:
            _, answer, certificate = FAULTS[what]
            server = Server(ADDRESS, port, self._contexts[certificate], answer)
            self._stack.callback(server.close)
        return f"{ADDRESS}:{port}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four processes, and for each a destination of each kind."""
    folder = tmp_path_factory.mktemp("failures")
    certificates = CertificateAuthority(folder)
    with ExitStack() as stack:
        faults = Faults(certificates, stack)
        names = {
            **{process: faults.names(KINDS) for process in ASKING},
            **{
                sender: faults.names(KINDS, partial(SHARDS.should_handle, sender))
                for sender in FEDERATION_SENDERS
            },
            "shared": faults.names(SHARED),
        }
        synapse = stack.enter_context(
            RealSynapse(folder, certificates, workers=True, extra_config=CONFIG)
        )
        askers = {
            process: synapse.client(synapse.create_user(process), process)
            for process in ASKING
        }
        yield Cluster(synapse, synapse.as_admin(), askers, names)


@pytest.fixture(scope="module")
def told(cluster: Cluster) -> list[Told]:
    """A thousand failures, made while other requests go on, and all written."""

    def enough() -> bool:
        told = cluster.told()
        each = Counter(line.destination for line in told)
        return len(told) >= ALL and all(each[name] >= EACH for name in cluster.faults)

    with load(cluster):
        wait_until(lambda: len(cluster.told()) > ALL / 2, "failures", 60, 0.5)
        for name in random.sample(sorted(cluster.names[MAIN]), 5):
            answer = cluster.client.reconnect(name, timeout_ms=1000)
            assert answer["outcome"] in ("still_failing", "pending")
        cluster.client.diagnose(name)
        wait_until(enough, "enough failures", 90, 0.5)
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


def kind_of_no_name() -> str:
    """Return what a name that is not there is called, by what is asked here."""
    try:
        socket.getaddrinfo("nosuch.invalid", 8448)
    except socket.gaierror as e:
        # Without a network no name server says that it is not there.
        return "dns_not_found" if e.errno == socket.EAI_NONAME else "dns_failed"
    raise AssertionError


def test_every_failure(cluster: Cluster, told: list[Told]) -> None:
    """Each of a thousand failures is recorded, as what it is, and when it was.

    On four processes; what several of them meet is one row. Reconnects and diagnoses
    are not recorded. More kinds: test_e2e_diagnosis.
    """
    lines: dict[str, list[Told]] = defaultdict(list)
    for line in told:
        lines[line.destination].append(line)
    assert len(told) >= ALL
    assert {line.process for line in told} == set(PROCESSES)
    assert cluster.counts() == {name: len(found) for name, found in lines.items()}

    kinds = {**KINDS, "no such name": kind_of_no_name()}
    for name, what in cluster.faults.items():
        (failure,) = cluster.failures(name)
        found = sorted(lines[name], key=lambda line: line.ts)
        expected = (kinds[what], len(found), found[-1].process)
        is_ = (failure["kind"], failure["count"], failure["instance"])
        assert is_ == expected, (name, what)
        assert told_as(failure["kind"], failure["message"]), failure
        assert abs(failure["first_ts"] - found[0].ts) <= CLOSE_MS, (failure, found)
        assert abs(failure["last_ts"] - found[-1].ts) <= CLOSE_MS, (failure, found)
        (outage,) = cluster.client.outages(name)
        assert outage["ended"] is None
        # By Synapse's row, which is another transaction's.
        assert abs(outage["start_ts"] - found[0].ts) < 1000, (outage, found)
    for name in cluster.names["shared"]:
        assert {*ASKING} < {line.process for line in lines[name]}


def test_killed_and_stopped(cluster: Cluster, told: list[Told]) -> None:
    """Of a process that is killed at most the last five seconds are lost.

    Of one that is stopped in an orderly way, nothing of what came before is.
    """
    synapse = cluster.synapse
    ended_ts: dict[str, float] = {}
    with load(cluster):
        time.sleep(3)
        for name in KILLED:
            time.sleep(random.uniform(0, 3))
            ended_ts[name] = time.time() * 1000
            synapse.process(name).kill()
        for name in (FEDERATION_SENDERS[1], MAIN):
            time.sleep(random.uniform(0, 2))
            # What is under way then Synapse breaks off itself.
            ended_ts[name] = time.time() * 1000
            synapse.stop(name)
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
        for name, count in all_.items():
            assert safe[name] <= counts.get(name, 0) <= count, (process, name)
    assert len(lines) > len(told) + 100
