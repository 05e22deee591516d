# SPDX-License-Identifier: Apache-2.0
"""Remote servers that answer what is asked in passing, and refuse what is sent.

All of them answer 200 to `/version` and `/key/v2/server`. On one process with SQLite,
and on a cluster whose senders are processes of their own.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import attr
import pytest
from deadlines import SOON_S
from fleet import CONTACT, read_rows, write_failing

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.configuration import GENERIC_WORKER, MAIN
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import MessageKind, RemoteServer
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

DAY_MS = 86_400_000
FAILING_SINCE_TS = int(time.time() * 1000) - 90 * DAY_MS

# A message as large as what is known to have been refused.
LARGE = "x" * 60_000

Answer = tuple[int, dict[str, Any]]


def unauthorized(path: str, _body: bytes) -> Answer | None:
    """Hold an old key of ours: refuse all that is signed."""
    if path.endswith(("/version", "/key/v2/server")):
        return None
    return 401, {"errcode": "M_UNAUTHORIZED", "error": "Invalid signature"}


def too_large(path: str, body: bytes) -> Answer | None:
    """Stand behind a proxy that takes small bodies only."""
    if "/send/" in path and len(body) > 10_000:
        return 413, {"errcode": "M_TOO_LARGE", "error": "Too large"}
    return None


def busy(path: str, body: bytes) -> Answer | None:
    """Be busy with a transaction of ours, as far as an empty one is concerned."""
    if CONTACT in path and len(body) < 10_000:
        said = {"errcode": "M_UNKNOWN", "error": "Too many concurrent transactions"}
        return 429, said
    return None


def takes_all(_path: str, _body: bytes) -> Answer | None:
    """Answer as ever."""
    return None


SORTS: dict[str, Callable[[str, bytes], Answer | None]] = {
    "unauthorized": unauthorized,
    "too_large": too_large,
    "busy": busy,
    "takes_all": takes_all,
}


@attr.s(slots=True, auto_attribs=True)
class World:
    synapse: SynapseServer
    client: MatrixClient
    user: MatrixClient
    certificates: CertificateAuthority
    stack: ExitStack
    used: list[str] = attr.Factory(list)

    def remote(self, sort: str, *, waits: bool = True) -> RemoteServer:
        """Return a server that is in backoff, and for which something large waits."""
        address = f"127.0.0.{100 + len(self.used)}"
        self.used.append(address)
        remote = RemoteServer(address, self.certificates)
        remote.special = SORTS[sort]
        self.stack.enter_context(remote)
        name = remote.server_name
        write_failing(self.synapse, [name], failing_since_ts=FAILING_SINCE_TS)
        if waits:
            self.user.send_to_device(f"@x:{name}", LARGE)
        return remote

    def settled(self, name: str) -> dict[str, Any]:
        """Return the only entry of a destination once it is known what came of it."""

        def ended() -> dict[str, Any] | None:
            (entry,) = self.client.audit(destination=name)
            return entry if entry["outcome"] != "pending" else None

        found = wait_until(ended, f"the entry of {name} to end", SOON_S)
        assert found is not None
        return found

    def failing_since(self, name: str) -> int | None:
        return read_rows(self.synapse)[name][2]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="one", marks=pytest.mark.one_synapse),
        pytest.param(True, id="cluster"),
    ],
)
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    certificates = CertificateAuthority(folder)
    with (
        SynapseServer(
            folder / "synapse", certificates, workers=request.param
        ) as synapse,
        ExitStack() as stack,
    ):
        admin = synapse.create_user("admin", admin=True)
        process = GENERIC_WORKER if request.param else MAIN
        client = synapse.client(admin, process)
        yield World(synapse, client, synapse.client(admin), certificates, stack)


def sent(remote: RemoteServer) -> tuple[int, int]:
    """Return how many contacts, and how many real transactions a server has got."""
    paths = [seen.path for seen in remote.requests if "/send/" in seen.path]
    contacts = sum(CONTACT in path for path in paths)
    return contacts, len(paths) - contacts


@pytest.mark.parametrize(
    ("sort", "outcome", "got"),
    [
        ("unauthorized", "still_failing", (1, 0)),
        ("too_large", "refused", (1, 1)),
        ("busy", "connected", (1, 1)),
        ("takes_all", "connected", (1, 1)),
    ],
)
def test_reconnect(world: World, sort: str, outcome: str, got: tuple[int, int]) -> None:
    """It is told what real traffic meets; what refuses it fails since when it did."""
    remote = world.remote(sort)
    name = remote.server_name
    answer = world.client.reconnect(name, timeout_ms=30_000)
    assert answer["outcome"] == outcome, answer
    connected = outcome == "connected"
    assert (answer["after"]["failure_ts"] is None) is connected
    assert (world.failing_since(name) is None) is connected
    if not connected:
        assert world.failing_since(name) == FAILING_SINCE_TS
    if outcome == "refused":
        assert answer["contact"]["error"] is None
        assert answer["refused"].pop("bytes") > len(LARGE)
        assert answer["refused"] == {
            "status": 413,
            "pdus": 0,
            "edus": 1,
            "to_device_messages": 1,
        }
    else:
        assert answer["refused"] is None
    if connected:
        remote.wait_for_message(MessageKind.TO_DEVICE, LARGE, SOON_S)
    assert world.settled(name)["outcome"] == outcome
    assert sent(remote) == got
    if outcome == "still_failing":
        # Its keys and its version, which it tells everybody, are no success.
        assert world.client.diagnose(name)["stored"]["last_success_ts"] is None


def test_reset(world: World) -> None:
    """A reset sends one transaction: what waits, or else an empty one."""
    remotes = {
        (sort, waits): world.remote(sort, waits=waits)
        for sort in SORTS
        for waits in (True, False)
    }
    for remote in remotes.values():
        world.client.reset_connection(remote.server_name)
    for (sort, waits), remote in remotes.items():
        entry = world.settled(remote.server_name)
        if sort != "unauthorized" and not (waits and sort == "too_large"):
            assert entry["outcome"] == "connected", (sort, waits)
        elif waits:
            assert entry["outcome"] == "refused", sort
            assert entry["details"]["refused"]["status"] in (401, 413)
            assert entry["details"]["refused"]["to_device_messages"] == 1
        else:
            assert entry["outcome"] == "still_failing"
        since = None if entry["outcome"] == "connected" else FAILING_SINCE_TS
        assert world.failing_since(remote.server_name) == since, (sort, waits)
    # Long enough for one more.
    time.sleep(3)
    for (sort, waits), remote in remotes.items():
        assert sent(remote) == ((0, 1) if waits else (1, 0)), (sort, waits)


def test_bulk(world: World) -> None:
    """A run calls nobody connected who refuses what waits."""
    remotes = {sort: world.remote(sort) for sort in SORTS}
    names = {sort: remote.server_name for sort, remote in remotes.items()}
    run = world.client.start_run(destinations=[*names.values()], per_second=50)
    wait_until(lambda: world.client.run(run["id"])["ended_ts"], "the run to end", 30)
    found = world.client.run(run["id"])
    assert found["outcomes"] == {"connected": 2, "refused": 1, "still_failing": 1}
    assert {sort: sent(remote) for sort, remote in remotes.items()} == {
        "unauthorized": (1, 0),
        "too_large": (1, 1),
        "busy": (1, 1),
        "takes_all": (1, 1),
    }
    listed = world.client.request(
        "GET", "/_synapse/admin/v2/federation/destinations?failing_for=7d"
    )
    long_failing = {row["destination"] for row in listed["destinations"]}
    assert long_failing & {*names.values()} == {
        names["unauthorized"],
        names["too_large"],
    }
    entry = world.settled(names["too_large"])
    assert entry["outcome"] == "refused"
    # Wherever it was begun.
    assert (entry["run_id"], entry["instance"]) == (run["id"], MAIN)
