# SPDX-License-Identifier: Apache-2.0
"""Requests to other servers may go out through one worker only."""

from collections.abc import Iterator
from contextlib import ExitStack

import attr
import pytest
from faults import told_as
from fleet import read_rows, select, write_failing
from real_synapse import SHARDS, RealSynapse, remote_of

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
)
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import Behaviour, RemoteServer

pytestmark = pytest.mark.e2e

# How a remote server behaves, and what that is called.
KINDS = {
    Behaviour.DOWN: "connection_refused",
    Behaviour.EXPIRED_CERTIFICATE: "tls_expired",
    Behaviour.WRONG_NAME_CERTIFICATE: "tls_wrong_name",
    Behaviour.BAD_GATEWAY: "http_error",
}


@attr.s(slots=True, auto_attribs=True)
class Cluster:
    synapse: RealSynapse
    remote: RemoteServer


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("restricted")
    certificates = CertificateAuthority(folder)
    config = {
        "outbound_federation_restricted_to": [FEDERATION_SENDERS[0]],
        "federation_ip_range_blacklist": ["127.9.0.0/16"],
        "federation": {"max_short_retries": 0, "max_long_retries": 0},
    }
    with (
        RemoteServer("127.0.0.60", certificates) as remote,
        RealSynapse(folder, certificates, workers=True, extra_config=config) as synapse,
    ):
        write_failing(synapse, [remote.server_name], failing_since_ts=1_000_000)
        yield Cluster(synapse, remote)


@pytest.mark.parametrize("process", [MAIN, GENERIC_WORKER])
@pytest.mark.parametrize(
    "behaviour", [*KINDS, Behaviour.HEALTHY], ids=lambda behaviour: behaviour.value
)
def test_one(cluster: Cluster, behaviour: Behaviour, process: str) -> None:
    """A process that may not go out itself tells why a destination fails.

    Of the requests through Synapse's client it has nothing but what the other process
    tells. One that answers is reconnected, at last.
    """
    name = cluster.remote.server_name
    kind = KINDS.get(behaviour)
    cluster.remote.switch(behaviour)
    client = cluster.synapse.as_admin(process)
    before = read_rows(cluster.synapse)[name]

    report = client.diagnose(name)
    verdict = "failing" if kind else "ok"
    assert (report["verdict"], report["kind"]) == (verdict, kind), report
    assert kind is None or told_as(kind, report["explanation"]), report
    assert report["instance"] == process
    for stage in report["stages"]:
        if stage["name"] in ("well_known", "addresses", "connections", "version"):
            assert stage["outcome"] == "skipped"
            assert FEDERATION_SENDERS[0] in stage["message"]
    assert read_rows(cluster.synapse)[name] == before

    answer = client.reconnect(name)
    if kind is None:
        assert answer["outcome"] == "connected", answer
        assert answer["contact"]["server"]["name"] == "playground"
        return
    assert answer["outcome"] == "still_failing"
    error = answer["contact"]["error"]
    assert error["kind"] == kind, answer
    assert told_as(kind, error["message"]), answer
    assert read_rows(cluster.synapse)[name] == before


def test_too_large(cluster: Cluster) -> None:
    """That this side stops reading an answer is told as that."""
    cluster.remote.switch(Behaviour.HEALTHY)
    cluster.remote.special = lambda path, _body: (
        (200, {"pdus": {}, "x": "x" * 300_000}) if "/send/" in path else None
    )
    answer = cluster.synapse.as_admin().reconnect(cluster.remote.server_name)
    cluster.remote.special = lambda _path, _body: None
    error = answer["contact"]["error"]
    assert (error["kind"], error["reason"]) == ("invalid_response", "body_too_large")


def test_bulk(cluster: Cluster) -> None:
    """So does a bulk run on main, which may not go out itself either."""
    client = cluster.synapse.as_admin()
    cluster.remote.switch(Behaviour.HEALTHY)
    run = client.start_run(destinations=[cluster.remote.server_name])
    assert client.ended(run["id"])["outcomes"] == {"connected": 1}


# What real requests of a process that may not go out meet, and how it is recorded.
RECORDED = {**KINDS, Behaviour.HANGING: "response_timeout"}
SENDER = FEDERATION_SENDERS[1]


def test_recorded(cluster: Cluster) -> None:
    """Of a process that may not go out itself it is recorded why its requests fail.

    Main, the worker and the sender that may not; what another process has met is told
    as if they had met it themselves.
    """
    synapse, client = cluster.synapse, cluster.synapse.as_admin()
    expected: dict[str, tuple[str, str]] = {}
    with ExitStack() as stack:
        # All of names that the sender would send to.
        for process in (MAIN, GENERIC_WORKER, SENDER):
            for behaviour, kind in RECORDED.items():
                remote = remote_of(SENDER, "127.0.0.60", synapse.certificates)
                stack.enter_context(remote)
                remote.switch(behaviour)
                expected[remote.server_name] = (kind, process)
            blocked = (f"127.9.0.{len(expected) + n}:8448" for n in range(200))
            name = next(n for n in blocked if SHARDS.should_handle(SENDER, n))
            expected[name] = ("ip_blocked", process)
        for process in (MAIN, GENERIC_WORKER):
            users = {f"@x:{n}": [] for n, (_, by) in expected.items() if by == process}
            synapse.as_admin(process).request(
                "POST",
                "/_matrix/client/v3/keys/query",
                params={"timeout": 3000},
                json={"device_keys": users},
            )
        for name, (_, process) in expected.items():
            if process == SENDER:
                client.send_to_device(f"@x:{name}", "text")

        def recorded() -> bool:
            rows = select(synapse, "SELECT destination FROM federation_admin_failures")
            return expected.keys() <= {name for (name,) in rows}

        wait_until(recorded, "all to be recorded", 90)
    for name, (kind, process) in expected.items():
        (failure,) = client.detail(name)["failures"]
        is_ = (failure["kind"], failure["instance"])
        assert is_ == (kind, process), (name, failure)
        assert told_as(kind, failure["message"]), (name, failure)
