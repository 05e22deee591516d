# SPDX-License-Identifier: Apache-2.0
"""Hundreds of real failures of real requests, on every process, each of them recorded.

The truth is Synapse's own log: it has a line for each failure after which it backs off.
What each of all the faults is called in what is recorded is in test_e2e_diagnosis.
"""

import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any

import attr
import pytest
from fleet import select
from test_e2e_cluster import SHARDS
from test_e2e_restricted import KINDS

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import (
    FEDERATION_V2,
    MatrixClient,
    quoted,
)
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
)
from synapse_federation_admin.playground.processes import (
    PlaygroundError,
    wait_until,
)
from synapse_federation_admin.playground.remote import Behaviour, RemoteServer
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

ASKING = (MAIN, GENERIC_WORKER)
PROCESSES = (*ASKING, *FEDERATION_SENDERS)

# How many failures there have to be, and how many of each destination.
ALL = 300
EACH = 3

# How far a time that is recorded may be from that of the line in the log.
CLOSE_MS = 50

# How much of what waits in memory to be written `kill -9` may take.
LOST_S = 5

CONFIG = {
    "federation": {
        "client_timeout": "3s",
        "max_short_retries": 0,
        "max_long_retries": 0,
        "destination_min_retry_interval": 200,  # ms
        "destination_max_retry_interval": 200,
    },
}

KILLED = (GENERIC_WORKER, FEDERATION_SENDERS[0])

# Of which there is a destination that several processes meet.
SHARED = (Behaviour.DOWN, Behaviour.EXPIRED_CERTIFICATE)

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
    # By process, or "shared": the names of destinations, and what their failures are.
    names: dict[str, dict[str, str]]

    @property
    def kinds(self) -> dict[str, str]:
        return {name: kind for one in self.names.values() for name, kind in one.items()}

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
        path = f"{FEDERATION_V2}/destinations/{quoted(name)}"
        body = self.client.request("GET", path)
        assert body["last_failure"] == body["failures"][0]
        return body["failures"]

    def outages(self, name: str) -> list[Any]:
        path = f"{FEDERATION_V2}/destinations/{quoted(name)}/outages"
        return self.client.request("GET", path)["outages"]  # type: ignore[no-any-return]

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


def remote_of(process: str, certificates: CertificateAuthority) -> RemoteServer:
    """Return a server to which a process sends, if that is one that sends."""
    while True:
        remote = RemoteServer("127.0.0.70", certificates)
        if process in ASKING or SHARDS.should_handle(process, remote.server_name):
            return remote


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four processes, and for each a destination of each kind."""
    folder = tmp_path_factory.mktemp("failures")
    certificates = CertificateAuthority(folder)
    with ExitStack() as stack:
        names: dict[str, dict[str, str]] = {}
        for process in (*PROCESSES, "shared"):
            names[process] = {}
            for behaviour in SHARED if process == "shared" else KINDS:
                of = MAIN if process == "shared" else process
                remote = stack.enter_context(remote_of(of, certificates))
                remote.switch(behaviour)
                names[process][remote.server_name] = KINDS[behaviour]
        synapse = stack.enter_context(
            SynapseServer(
                folder / "synapse", certificates, workers=True, extra_config=CONFIG
            )
        )
        admin = synapse.create_user("admin", admin=True)
        askers = {
            process: synapse.client(synapse.create_user(process), process)
            for process in ASKING
        }
        yield Cluster(synapse, synapse.client(admin), askers, names)


@pytest.fixture(scope="module")
def told(cluster: Cluster) -> list[Told]:
    """Hundreds of failures, made while other requests go on, and all written."""

    def enough() -> bool:
        told = cluster.told()
        each = Counter(line.destination for line in told)
        return len(told) >= ALL and all(each[name] >= EACH for name in cluster.kinds)

    with load(cluster):
        wait_until(lambda: len(cluster.told()) > ALL / 2, "failures", 60, 0.5)
        for name in random.sample(sorted(cluster.names[MAIN]), 3):
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


def test_every_failure(cluster: Cluster, told: list[Told]) -> None:
    """Each of hundreds of failures is recorded, as what it is, and when it was.

    On four processes; what several of them meet is one row. Reconnects and diagnoses
    are not recorded.
    """
    lines: dict[str, list[Told]] = defaultdict(list)
    for line in told:
        lines[line.destination].append(line)
    assert len(told) >= ALL
    assert {line.process for line in told} == set(PROCESSES)
    assert cluster.counts() == {name: len(found) for name, found in lines.items()}

    for name, kind in cluster.kinds.items():
        (failure,) = cluster.failures(name)
        found = sorted(lines[name], key=lambda line: line.ts)
        expected = (kind, len(found), found[-1].process)
        is_ = (failure["kind"], failure["count"], failure["instance"])
        assert is_ == expected, name
        assert abs(failure["first_ts"] - found[0].ts) <= CLOSE_MS, (failure, found)
        assert abs(failure["last_ts"] - found[-1].ts) <= CLOSE_MS, (failure, found)
        (outage,) = cluster.outages(name)
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
    assert len(lines) > len(told) + 50
