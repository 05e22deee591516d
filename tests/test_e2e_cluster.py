# SPDX-License-Identifier: Apache-2.0
"""Main, a generic worker and two federation senders, on PostgreSQL and Redis."""

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack

import attr
import httpx
import pytest
from deadlines import AT_ONCE_S, SOON_S
from fleet import CONTACT
from openid_provider import OpenIDProvider, oidc_providers
from plain_browser import PlainBrowser
from synapse.config.workers import ShardedWorkerHandlingConfig

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import CONSOLE, FEDERATION, User
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
)
from synapse_federation_admin.playground.processes import free_port, wait_until
from synapse_federation_admin.playground.remote import (
    Behaviour,
    MessageKind,
    RemoteServer,
)
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

PROCESSES = (MAIN, GENERIC_WORKER)
SHARDS = ShardedWorkerHandlingConfig(list(FEDERATION_SENDERS))


@attr.s(slots=True, auto_attribs=True)
class Cluster:
    synapse: SynapseServer
    admin: User
    certificates: CertificateAuthority
    provider: OpenIDProvider
    # By the sender that they are for and the process through which they are reset.
    remotes: dict[tuple[str, str], RemoteServer]

    def row(self, process: str, remote: RemoteServer) -> dict[str, int]:
        """Return what the list of a process has of a destination."""
        client = self.synapse.client(self.admin, process)
        (row,) = client.destinations(destination=remote.server_name)["destinations"]
        return row


def remote_of(sender: str, address: str, ca: CertificateAuthority) -> RemoteServer:
    """Make a remote server to which a certain federation sender sends."""
    while True:
        remote = RemoteServer(address, ca)
        if SHARDS.should_handle(sender, remote.server_name):
            return remote


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two servers of each sender, down, with a message and a to-device message."""
    folder = tmp_path_factory.mktemp("cluster")
    certificates = CertificateAuthority(folder)
    with (
        OpenIDProvider("127.0.0.1", free_port()) as provider,
        SynapseServer(
            folder / "synapse",
            certificates,
            workers=True,
            # It is not there yet when Synapse starts, for all that Synapse knows.
            extra_config={"oidc_providers": oidc_providers(provider, discover=False)},
        ) as synapse,
        ExitStack() as stack,
    ):
        admin = synapse.create_user("admin", admin=True)
        client = synapse.client(admin)
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
        yield Cluster(synapse, admin, certificates, provider, remotes)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sender", FEDERATION_SENDERS)
def test_still_down(cluster: Cluster, sender: str, process: str) -> None:
    """What is still down is in backoff again, with fresh timings, seen from everywhere.

    It fails since when it failed before.
    """
    remote = cluster.remotes[sender, process]
    before = cluster.row(MAIN, remote)
    reset_ts = int(time.time() * 1000)

    cluster.synapse.client(cluster.admin, process).reset_connection(remote.server_name)

    for seen_from in PROCESSES:

        def failing_again(seen_from: str = seen_from) -> bool:
            row = cluster.row(seen_from, remote)
            is_fresh = row["retry_last_ts"] >= reset_ts
            return is_fresh and row["failure_ts"] == before["failure_ts"]

        wait_until(failing_again, f"{seen_from} to show it failing as before", 90)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sender", FEDERATION_SENDERS)
def test_reset(cluster: Cluster, sender: str, process: str) -> None:
    """The first attempt comes as soon as it answers, and so does what waited.

    From main and from the generic worker, for a destination of each sender.
    """
    remote = cluster.remotes[sender, process]
    client = cluster.synapse.client(cluster.admin, process)
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


@pytest.mark.parametrize("process", PROCESSES)
def test_nothing_queued(cluster: Cluster, process: str) -> None:
    """A destination for which nothing waits is contacted all the same."""
    client = cluster.synapse.client(cluster.admin, process)
    with RemoteServer("127.0.0.40", cluster.certificates) as remote:
        remote.switch(Behaviour.DOWN)
        client.query_keys(f"@x:{remote.server_name}")
        wait_until(
            lambda: (
                remote.server_name
                in {row["destination"] for row in client.destinations()["destinations"]}
            ),
            "Synapse to store the failure",
            90,
        )
        remote.switch(Behaviour.HEALTHY)

        client.reset_connection(remote.server_name)

        answered = time.monotonic()
        request = remote.wait_for_request(0, SOON_S, CONTACT)
        assert request.monotonic - answered < AT_ONCE_S


def test_other_listeners(cluster: Cluster) -> None:
    """The replication listener and a sender's serve no admin API, and no console."""
    for url in (
        f"http://127.0.0.1:{cluster.synapse.layout.replication_port}",
        *(cluster.synapse.url(sender) for sender in FEDERATION_SENDERS),
    ):
        for path in (f"{FEDERATION}/destinations", CONSOLE, f"{CONSOLE}session"):
            answer = httpx.get(
                f"{url}{path}",
                headers={"Authorization": f"Bearer {cluster.admin.access_token}"},
                trust_env=False,
            )
            assert answer.status_code == 404, path
            assert answer.json()["errcode"] == "M_UNRECOGNIZED"


def test_signing_in(cluster: Cluster) -> None:
    """One signs in to the console at a worker, with a password and by single sign-on,
    for every process; and out at another one."""
    cluster.provider.user = "admin"
    addresses = {name: cluster.synapse.url(name) for name in PROCESSES}
    verify = cluster.certificates.client_context()
    password = {"user": "admin", "password": cluster.admin.password}
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
