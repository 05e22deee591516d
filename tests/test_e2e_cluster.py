# SPDX-License-Identifier: Apache-2.0
"""Main, a generic worker and two federation senders, on PostgreSQL and Redis."""

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import attr
import pytest
from deadlines import AT_ONCE_S, SOON_S
from fleet import Fleet, read_rows, write_failing
from openid_provider import OpenIDProvider, oidc_providers
from plain_browser import PlainBrowser
from real_synapse import SHARDS, RealSynapse, remote_of

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import FEDERATION_V2
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
from synapse_federation_admin.playground.remote import (
    Behaviour,
    MessageKind,
    RemoteServer,
)

pytestmark = pytest.mark.e2e

PROCESSES = (MAIN, GENERIC_WORKER)
WAITING = "waiting for you"
FAILING_SINCE_TS = int(time.time() * 1000) - 90 * 86_400_000


@attr.s(slots=True, auto_attribs=True)
class Cluster:
    synapse: RealSynapse
    provider: OpenIDProvider
    # By the sender that they are for and the process through which they are reset.
    remotes: dict[tuple[str, str], RemoteServer]
    fleet: Fleet
    # Which of those that are up nobody has reconnected yet.
    fresh: list[str]

    def row(self, process: str, remote: RemoteServer) -> dict[str, int]:
        """Return what the list of a process has of a destination."""
        client = self.synapse.as_admin(process)
        (row,) = client.destinations(destination=remote.server_name)["destinations"]
        return row

    def take(self, sender: str) -> str:
        """Return a server that is up but in backoff, and whose sender is this one."""
        name = next(n for n in self.fresh if SHARDS.should_handle(sender, n))
        self.fresh.remove(name)
        return name

    def arrived(self, name: str) -> float:
        """Return when what was waiting for a server has arrived there."""
        wait_until(
            lambda: name in self.fleet.received(WAITING),
            f"the message for {name}",
            AT_ONCE_S,
            0.005,
        )
        return next(
            seen.monotonic
            for seen in self.fleet.seen
            if seen.name == name and WAITING in seen.body
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two servers of each sender, down, with a message and a to-device message.

    And many that are in backoff, of which some are up, with a to-device message.
    """
    folder = tmp_path_factory.mktemp("cluster")
    certificates = CertificateAuthority(folder)
    with (
        OpenIDProvider("127.0.0.1", free_port()) as provider,
        Fleet(certificates, up=200, dropping=100, delay_s=0.3) as fleet,
        RealSynapse(
            folder,
            certificates,
            workers=True,
            # It is not there yet when Synapse starts, for all that Synapse knows.
            extra_config={"oidc_providers": oidc_providers(provider, discover=False)},
        ) as synapse,
        ExitStack() as stack,
    ):
        client = synapse.as_admin()
        room_id = client.create_room()

        def wait_for(key: str) -> None:
            """Wait until Synapse has written something of each of them."""
            for remote in remotes.values():
                name = remote.server_name
                wait_until(lambda name=name: client.destination(name)[key], key, 60)

        remotes = {
            key: stack.enter_context(
                remote_of(key[0], f"127.0.0.{number}", certificates)
            )
            for number, key in enumerate(
                itertools.product(FEDERATION_SENDERS, PROCESSES), start=30
            )
        }
        for remote in remotes.values():
            remote.join_room(room_id, synapse.server_name)
        client.send_message(room_id, "to all")
        wait_for("last_successful_stream_ordering")
        for remote in remotes.values():
            remote.switch(Behaviour.DOWN)
        client.send_message(room_id, "waiting")
        for remote in remotes.values():
            client.send_to_device(f"@x:{remote.server_name}", "waiting too")
        wait_for("failure_ts")
        write_failing(synapse, fleet.names, failing_since_ts=FAILING_SINCE_TS)
        for name in fleet.up[:40]:
            client.send_to_device(f"@x:{name}", WAITING)
        yield Cluster(synapse, provider, remotes, fleet, fleet.up[:40])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sender", FEDERATION_SENDERS)
def test_reset(cluster: Cluster, sender: str, process: str) -> None:
    """The first attempt comes as soon as it answers, and so does what waited.

    From main and from the generic worker, for a destination of each sender.
    """
    remote = cluster.remotes[sender, process]
    client = cluster.synapse.as_admin(process)
    remote.switch(Behaviour.HEALTHY)

    client.reset_connection(remote.server_name)

    answered = time.monotonic()
    for found in (
        remote.wait_for_request(answered - 2, SOON_S, "/send/"),
        remote.wait_for_message(MessageKind.PDU, "waiting", SOON_S),
        remote.wait_for_message(MessageKind.TO_DEVICE, "waiting too", SOON_S),
    ):
        assert found.monotonic - answered < AT_ONCE_S, found
    for seen_from in PROCESSES:
        row = cluster.row(seen_from, remote)
        assert (row["retry_last_ts"], row["retry_interval"]) == (0, 0)
        assert row["failure_ts"] is None


def test_signing_in(cluster: Cluster) -> None:
    """One signs in to the console at a worker, with a password and by single sign-on,
    for every process; and out at another one."""
    cluster.provider.user = "admin"
    addresses = {name: cluster.synapse.url(name) for name in PROCESSES}
    verify = cluster.synapse.certificates.client_context()
    password = {"user": "admin", "password": cluster.synapse.admin.password}
    for is_single in (False, True):
        with PlainBrowser(addresses[GENERIC_WORKER], verify, {}) as browser:
            page = browser.open("/forget")
            if is_single:
                page = browser.follow(page, "Sign in with The <Provider>")
                page = browser.follow(browser.send(page, "/confirm"), "Continue")
                page = browser.send(page, "/session")
            else:
                page = browser.send(page, "/session", how="password", **password)
            assert (page.status, page.path) == (200, "/forget"), page.text
            assert 'answered by <span class="name">generic_worker<' in page.text
            browser.base = addresses[MAIN]
            page = browser.open("/forget")
            assert 'answered by <span class="name">main<' in page.text
            browser.send(page, "/session/end")
            for browser.base in addresses.values():
                assert browser.open("/forget").status == 401


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sender", FEDERATION_SENDERS)
def test_reconnect(cluster: Cluster, sender: str, process: str) -> None:
    """What waits arrives as soon as it answers, from any sender, by any process.

    Every process is told; and the row is clear, seen from everywhere.
    """
    name = cluster.take(sender)
    answer = cluster.synapse.as_admin(process).reconnect(name, reason="back")
    answered = time.monotonic()
    assert answer["outcome"] == "connected", answer
    assert answer["contact"]["server"] == {"name": "fleet", "version": "1"}
    # The fleet takes 300 ms to answer.
    assert 300 <= answer["contact"]["duration_ms"] < AT_ONCE_S * 1000
    assert set(answer["told"]) == {*PROCESSES, *FEDERATION_SENDERS}
    delay_s = cluster.arrived(name) - answered
    print(f"{sender}, reconnected through {process}: {delay_s:+.3f} s")
    assert delay_s < AT_ONCE_S
    assert cluster.fleet.contacts[name] == 1
    for seen_from in PROCESSES:
        row = cluster.synapse.as_admin(seen_from).destination(name)
        assert (row["retry_last_ts"], row["failure_ts"]) == (0, None)
    (entry,) = cluster.synapse.as_admin().audit(destination=name)
    assert entry["instance"] == process
    assert entry["outcome"] == "connected"


def test_cancel_through_a_worker(cluster: Cluster) -> None:
    """A run that is cancelled at another process soon begins no contact any more."""
    client = cluster.synapse.as_admin(GENERIC_WORKER)
    run = client.start_run(destinations=cluster.fleet.dropping, per_second=5)
    wait_until(lambda: client.run(run["id"])["done"] > 10, "the run to get on", 90)
    cancelled = client.request("DELETE", f"{FEDERATION_V2}/runs/{run['id']}")
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
            client = cluster.synapse.as_admin(process)
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
        lambda: (
            not cluster.synapse.as_admin().reconnect(cluster.fleet.up[0])["not_told"]
        ),
        "Redis to be used again",
        90,
    )


def test_postgres_restarts(cluster: Cluster) -> None:
    """PostgreSQL stops and starts in mid-run: it goes on, and counts nothing twice."""
    client = cluster.synapse.as_admin()
    # Those behind are contacted by the test above.
    names = cluster.fleet.up[40:-2]
    # It lasts longer than PostgreSQL needs to stop.
    run = client.start_run(destinations=names, per_second=10)
    wait_until(lambda: client.run(run["id"])["done"] > 5, "the run to get on", 90)
    postgres = cluster.synapse.postgres
    assert postgres is not None
    postgres.stop()
    wait_until(
        lambda: "What needs the database waits" in cluster.synapse.log_tail(MAIN, 1000),
        "the run to meet it",
        90,
    )
    postgres.start()

    def has_ended() -> bool:
        # While Synapse's connections are those of before, it answers nothing of use.
        with suppress(PlaygroundError):
            return client.run(run["id"])["ended_ts"] is not None
        return False

    wait_until(has_ended, "the run to end", SOON_S, 0.2)
    found = client.run(run["id"])
    is_ = (found["status"], found["matched"], found["done"], found["outcomes"])
    assert is_ == ("complete", len(names), len(names), {"connected": len(names)})
    entries = client.audit(run_id=run["id"], action="reconnect")
    assert sorted(entry["destination"] for entry in entries) == sorted(names)
    contacts = cluster.fleet.contacts
    assert {n: contacts[n] for n in names if contacts[n] != 1} == {}
