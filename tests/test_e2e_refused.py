# SPDX-License-Identifier: Apache-2.0
"""Remote servers that answer what is asked in passing, and refuse what is sent.

All of them answer 200 to `/version` and `/key/v2/server`. On one process with SQLite,
and on a cluster whose senders are processes of their own.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import attr
import pytest
from deadlines import SOON_S
from fleet import CONTACT, read_rows, write_failing
from real_synapse import Admin, RealSynapse

from synapse_federation_admin.playground.configuration import GENERIC_WORKER, MAIN
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import MessageKind, RemoteServer

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
    synapse: RealSynapse
    client: Admin
    has_history: bool
    stack: ExitStack
    used: list[str] = attr.Factory(list)

    def start(self, sort: str) -> RemoteServer:
        address = f"127.0.0.{100 + len(self.used)}"
        self.used.append(address)
        remote = RemoteServer(address, self.synapse.certificates)
        remote.special = SORTS[sort]
        return self.stack.enter_context(remote)

    def remote(self, sort: str, *, waits: bool = True) -> RemoteServer:
        """Return a server that is in backoff, and for which something large waits."""
        remote = self.start(sort)
        name = remote.server_name
        write_failing(self.synapse, [name], failing_since_ts=FAILING_SINCE_TS)
        if waits:
            self.send(remote, LARGE)
        return remote

    def send(self, remote: RemoteServer, text: str) -> None:
        self.synapse.as_admin().send_to_device(f"@x:{remote.server_name}", text)

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


ONE = pytest.param("one", marks=pytest.mark.one_synapse)


@pytest.fixture(scope="module", params=[ONE, "cluster"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """One process, a cluster, or one process that records nothing."""
    has_history, is_cluster = request.param != "off", request.param == "cluster"
    config = {"history": {"enabled": has_history}, "diagnosis": {"timeout": "60s"}}
    with (
        RealSynapse(
            tmp_path_factory.mktemp("world"), workers=is_cluster, module_config=config
        ) as synapse,
        ExitStack() as stack,
    ):
        client = synapse.as_admin(GENERIC_WORKER if is_cluster else MAIN)
        yield World(synapse, client, has_history, stack)


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
    if connected and world.has_history and len(world.synapse.processes) == 1:
        # At once, not only when it is written next; a sender of its own may take that.
        assert world.client.detail(name)["last_success_ts"] is not None
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
    found = world.client.ended(run["id"])
    assert found["outcomes"] == {"connected": 2, "refused": 1, "still_failing": 1}
    assert {sort: sent(remote) for sort, remote in remotes.items()} == {
        "unauthorized": (1, 0),
        "too_large": (1, 1),
        "busy": (1, 1),
        "takes_all": (1, 1),
    }
    listed = world.client.v2("destinations", failing_for="7d")
    long_failing = {row["destination"] for row in listed["destinations"]}
    assert long_failing & {*names.values()} == {
        names["unauthorized"],
        names["too_large"],
    }
    entry = world.settled(names["too_large"])
    assert entry["outcome"] == "refused"
    # Wherever it was begun.
    assert (entry["run_id"], entry["instance"]) == (run["id"], MAIN)


@pytest.mark.parametrize("world", [ONE, "cluster", "off"], indirect=True)
def test_diagnosis(world: World) -> None:
    """Three seconds after a real request was refused, nothing is told to be well."""
    remote = world.start("too_large")
    name = remote.server_name
    world.send(remote, "small")
    remote.wait_for_message(MessageKind.TO_DEVICE, "small", SOON_S)
    world.send(remote, LARGE)
    # Synapse has met it; that may be written nowhere yet.
    wait_until(lambda: read_rows(world.synapse).get(name), "a 413", SOON_S)
    if world.has_history:
        why = "why it was refused to be known"
        wait_until(lambda: world.client.diagnose(name)["kind"], why, SOON_S)
    world.client.diagnose(name)
    # That it has answered the requests of a diagnosis says nothing of real ones.
    report = world.client.diagnose(name)
    said = f"{report['explanation']} {report['advice']}"
    if world.has_history:
        assert (report["verdict"], report["kind"]) == ("failing", "too_large")
        assert report["stored"]["last_request"] == "failed"
        assert report["stored"]["last_succeeded_ago_ms"] is not None
        assert "the last success was" in report["explanation"], report
    else:
        assert (report["verdict"], report["kind"]) == ("degraded", None)
        assert "why is not known" in report["explanation"], report
    for untrue in ("Nothing to do", "works.", "does not help"):
        assert untrue not in said
    # Once it takes them, all is well again.
    remote.special = takes_all
    answer = world.client.reconnect(name, timeout_ms=30_000)
    assert answer["outcome"] == "connected", answer
    if len(world.synapse.processes) > 1:
        # Another process has met that, and writes it soon.
        is_well = lambda: world.client.diagnose(name)["verdict"] == "ok"  # noqa: E731
        wait_until(is_well, "all to be well", SOON_S)
    report = world.client.diagnose(name)
    assert report["verdict"] == "ok", report
    is_, says = ("not_known", "is not known")
    if world.has_history:
        is_, says = ("succeeded", "request succeeded")
    assert report["stored"]["last_request"] == is_
    assert says in report["explanation"], report


@pytest.mark.parametrize("world", [ONE, "off"], indirect=True)
def test_under_way(world: World) -> None:
    """While a real transaction is under way, no other is sent: it is the contact."""
    asked, goes_on = threading.Event(), threading.Event()

    def special(path: str, _: bytes) -> None:
        if "/key/" in path:
            asked.set()
        elif "/send/" in path:
            goes_on.wait(SOON_S)

    remote = world.start("takes_all")
    remote.special = special
    world.send(remote, "small")
    remote.wait_for_request(0, SOON_S, "/send/")
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(world.client.diagnose, remote.server_name)
        try:
            # It has begun with both at once.
            assert asked.wait(SOON_S)
        finally:
            goes_on.set()
        report = found.result(SOON_S)
    (stage,) = [s for s in report["stages"] if s["name"] == "authenticated"]
    assert stage["findings"]["is_real"] is True, report
    assert (report["verdict"], stage["findings"]["status"]) == ("ok", 200), report
    assert sent(remote)[0] == 0
