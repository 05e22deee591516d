# SPDX-License-Identifier: Apache-2.0
"""Requests to other servers may go out through one worker only."""

from collections.abc import Iterator

import attr
import pytest
from fleet import read_rows, write_failing

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import User
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
)
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import Behaviour, RemoteServer
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

# How a remote server behaves, and what that is called. What another process has met
# comes as text, which does not tell why a certificate was not trusted.
KINDS = {
    Behaviour.DOWN: "connection_refused",
    Behaviour.EXPIRED_CERTIFICATE: "tls_untrusted",
    Behaviour.WRONG_NAME_CERTIFICATE: "tls_wrong_name",
    Behaviour.BAD_GATEWAY: "http_error",
}


@attr.s(slots=True, auto_attribs=True)
class Cluster:
    synapse: SynapseServer
    admin: User
    remote: RemoteServer


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("restricted")
    certificates = CertificateAuthority(folder)
    config = {"outbound_federation_restricted_to": [FEDERATION_SENDERS[0]]}
    with (
        RemoteServer("127.0.0.60", certificates) as remote,
        SynapseServer(
            folder / "synapse", certificates, workers=True, extra_config=config
        ) as synapse,
    ):
        write_failing(synapse, [remote.server_name], failing_since_ts=1_000_000)
        admin = synapse.create_user("admin", admin=True)
        yield Cluster(synapse, admin, remote)


@pytest.mark.parametrize("process", [MAIN, GENERIC_WORKER])
@pytest.mark.parametrize("behaviour", KINDS, ids=lambda behaviour: behaviour.value)
def test_still_failing(cluster: Cluster, behaviour: Behaviour, process: str) -> None:
    """A process that may not go out itself tells why a destination fails."""
    name = cluster.remote.server_name
    cluster.remote.switch(behaviour)
    before = read_rows(cluster.synapse)[name]
    answer = cluster.synapse.client(cluster.admin, process).reconnect(name)
    assert answer["outcome"] == "still_failing"
    assert answer["contact"]["error"]["kind"] == KINDS[behaviour], answer
    assert read_rows(cluster.synapse)[name] == before


@pytest.mark.parametrize("process", [MAIN, GENERIC_WORKER])
def test_connected(cluster: Cluster, process: str) -> None:
    """It reconnects a destination that answers."""
    name = cluster.remote.server_name
    cluster.remote.switch(Behaviour.HEALTHY)
    answer = cluster.synapse.client(cluster.admin, process).reconnect(name)
    assert answer["outcome"] == "connected", answer
    assert answer["contact"]["server"]["name"] == "playground"


def test_bulk(cluster: Cluster) -> None:
    """So does a bulk run on main, which may not go out itself either."""
    client = cluster.synapse.client(cluster.admin)
    cluster.remote.switch(Behaviour.HEALTHY)
    run = client.start_run(destinations=[cluster.remote.server_name])
    wait_until(lambda: client.run(run["id"])["ended_ts"], "the run to end", 20)
    assert client.run(run["id"])["connected"] == 1


# What a diagnosis finds; of the requests through Synapse's client it has nothing but
# what the other process tells.
VERDICTS = {
    Behaviour.HEALTHY: ("ok", None),
    Behaviour.DOWN: ("failing", "connection_refused"),
    Behaviour.WRONG_NAME_CERTIFICATE: ("failing", "tls_wrong_name"),
    Behaviour.BAD_GATEWAY: ("failing", "http_error"),
}


@pytest.mark.parametrize("process", [MAIN, GENERIC_WORKER])
@pytest.mark.parametrize("behaviour", VERDICTS, ids=lambda behaviour: behaviour.value)
def test_diagnosis(cluster: Cluster, behaviour: Behaviour, process: str) -> None:
    """Where a process may not go out, Synapse's own client decides."""
    name = cluster.remote.server_name
    cluster.remote.switch(behaviour)
    before = read_rows(cluster.synapse)[name]
    report = cluster.synapse.client(cluster.admin, process).diagnose(name)
    assert (report["verdict"], report["kind"]) == VERDICTS[behaviour], report
    assert report["instance"] == process
    for stage in report["stages"]:
        if stage["name"] in ("well_known", "addresses", "connections", "version"):
            assert stage["outcome"] == "skipped"
            assert FEDERATION_SENDERS[0] in stage["message"]
    assert read_rows(cluster.synapse)[name] == before
