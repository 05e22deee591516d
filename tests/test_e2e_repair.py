# SPDX-License-Identifier: Apache-2.0
"""Reconnects on a cluster: main, a worker and two senders, PostgreSQL and Redis."""

import time
from collections.abc import Iterator

import attr
import pytest
from deadlines import AT_ONCE_S, SOON_S
from fleet import Fleet, read_rows, write_failing
from synapse.config.workers import ShardedWorkerHandlingConfig

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient, User
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
)
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

PROCESSES = (MAIN, GENERIC_WORKER)
SHARDS = ShardedWorkerHandlingConfig(list(FEDERATION_SENDERS))
WAITING = "waiting for you"
FAILING_SINCE_TS = int(time.time() * 1000) - 90 * 86_400_000


@attr.s(slots=True, auto_attribs=True)
class Cluster:
    synapse: SynapseServer
    admin: User
    certificates: CertificateAuthority
    fleet: Fleet
    # Which of those that are up nobody has reconnected yet.
    fresh: list[str]

    def client(self, process: str = MAIN) -> MatrixClient:
        return self.synapse.client(self.admin, process)

    def take(self, sender: str | None = None) -> str:
        """Return a server that is up but in backoff, and whose sender is this one."""
        for name in self.fresh:
            if sender is None or SHARDS.should_handle(sender, name):
                self.fresh.remove(name)
                return name
        raise AssertionError("none left")

    def arrived(self, name: str, timeout_s: float) -> float:
        """Return when what was waiting for a server has arrived there."""
        wait_until(
            lambda: name in self.fleet.received(WAITING),
            f"the message for {name}",
            timeout_s,
            0.005,
        )
        return next(
            seen.monotonic
            for seen in self.fleet.seen
            if seen.name == name and WAITING in seen.body
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Servers that are up, in backoff, and for each of which a message waits."""
    folder = tmp_path_factory.mktemp("cluster")
    certificates = CertificateAuthority(folder)
    with (
        Fleet(certificates, up=200, dropping=100, delay_s=0.3) as fleet,
        SynapseServer(folder / "synapse", certificates, workers=True) as synapse,
    ):
        write_failing(synapse, fleet.names, failing_since_ts=FAILING_SINCE_TS)
        admin = synapse.create_user("admin", admin=True)
        client = synapse.client(admin)
        for name in fleet.up[:40]:
            client.send_to_device(f"@x:{name}", WAITING)
        yield Cluster(synapse, admin, certificates, fleet, fleet.up[:40])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sender", FEDERATION_SENDERS)
def test_reconnect(cluster: Cluster, sender: str, process: str) -> None:
    """What waits arrives as soon as it answers, from any sender, by any process.

    Every process is told; and the row is clear, seen from everywhere.
    """
    name = cluster.take(sender)
    answer = cluster.client(process).reconnect(name, reason="back")
    answered = time.monotonic()
    assert answer["outcome"] == "connected", answer
    assert answer["contact"]["server"] == {"name": "fleet", "version": "1"}
    # The fleet takes 300 ms to answer.
    assert 300 <= answer["contact"]["duration_ms"] < AT_ONCE_S * 1000
    assert set(answer["told"]) == {*PROCESSES, *FEDERATION_SENDERS}
    delay_s = cluster.arrived(name, 30) - answered
    print(f"{sender}, reconnected through {process}: {delay_s:+.3f} s")
    assert delay_s < AT_ONCE_S
    assert cluster.fleet.contacts[name] == 1
    for seen_from in PROCESSES:
        row = cluster.client(seen_from).destination(name)
        assert (row["retry_last_ts"], row["failure_ts"]) == (0, None)
    (entry,) = cluster.client().audit(destination=name)
    assert entry["instance"] == process
    assert entry["outcome"] == "connected"


def test_cancel_through_a_worker(cluster: Cluster) -> None:
    """A run that is cancelled at another process soon begins no contact any more."""
    client = cluster.client(GENERIC_WORKER)
    run = client.start_run(destinations=cluster.fleet.dropping, per_second=20)
    wait_until(lambda: client.run(run["id"])["done"] > 10, "the run to get on", 90)
    cancelled = client.request(
        "DELETE", f"/_synapse/admin/v2/federation/runs/{run['id']}"
    )
    assert cancelled["status"] == "cancelled"

    def is_quiet() -> bool:
        before = len(cluster.fleet.seen)
        time.sleep(2.5)
        return len(cluster.fleet.seen) == before

    wait_until(is_quiet, "contacts to end", SOON_S)
    assert not set(cluster.fleet.dropping) <= set(cluster.fleet.contacts)
    assert client.run(run["id"])["done"] == cancelled["done"]
    assert len(client.audit(run_id=run["id"], action="reconnect")) == cancelled["done"]


def test_redis_is_gone(cluster: Cluster) -> None:
    """Without Redis a destination is reconnected, and it is said who was not told."""
    redis = cluster.synapse.redis
    assert redis is not None
    redis.stop()
    try:
        # Nothing waits for them: what does is sent when the sender next looks.
        for process, name in zip(PROCESSES, cluster.fleet.up[-2:], strict=True):
            client = cluster.client(process)
            wait_until(
                lambda client=client, name=name: client.reconnect(name)["not_told"],
                "the process to notice",
                90,
            )
            answer = client.reconnect(name)
            assert answer["outcome"] == "connected"
            assert "Redis" in answer["not_told_error"]
            assert not read_rows(cluster.synapse)[name][0]
    finally:
        redis.start()
    wait_until(
        lambda: not cluster.client().reconnect(cluster.fleet.up[0])["not_told"],
        "Redis to be used again",
        90,
    )


def test_postgres_restarts(cluster: Cluster) -> None:
    """PostgreSQL stops and starts in mid-run: it goes on, and counts nothing twice."""
    client = cluster.client()
    # Those behind are contacted by the test above.
    names = cluster.fleet.up[40:-2]
    run = client.start_run(destinations=names, per_second=40)
    wait_until(lambda: client.run(run["id"])["done"] > 20, "the run to get on", 90)
    postgres = cluster.synapse.postgres
    assert postgres is not None
    postgres.stop()
    wait_until(
        lambda: "What needs the database waits" in cluster.synapse.log_tail(MAIN, 1000),
        "the run to meet it",
        90,
    )
    postgres.start()
    found = _wait_for_end(client, run["id"])
    assert (found["status"], found["matched"]) == ("complete", len(names))
    assert (found["done"], found["outcomes"]) == (
        len(names),
        {"connected": len(names)},
    )
    entries = client.audit(run_id=run["id"], action="reconnect")
    assert sorted(entry["destination"] for entry in entries) == sorted(names)
    contacts = cluster.fleet.contacts
    assert {n: contacts[n] for n in names if contacts[n] != 1} == {}


def _wait_for_end(client: MatrixClient, run_id: str) -> dict[str, object]:
    def ended() -> dict[str, object] | None:
        try:
            found = client.run(run_id)
        except Exception:
            # While Synapse's connections are those of before.
            return None
        return found if found["ended_ts"] else None

    found = wait_until(ended, "the run to end", 60, 0.2)
    assert found is not None
    return found
