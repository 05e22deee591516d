# SPDX-License-Identifier: Apache-2.0
"""One real Synapse process on SQLite, and remote servers that fail for real."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from deadlines import SOON_S

from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.playground.client import FEDERATION
from synapse_federation_admin.playground.processes import free_port, wait_until
from synapse_federation_admin.playground.remote import Behaviour, MessageKind
from synapse_federation_admin.playground.world import WAITING_TO_DEVICE, Playground

pytestmark = pytest.mark.e2e

METRICS_PORT = free_port()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """Five remote servers that fail, and two that do not."""
    extra: dict[str, object] = {"enable_metrics": True}
    world = Playground(tmp_path_factory.mktemp("world"), extra_config=extra)
    layout = world.synapse.layout
    folder = world.synapse.folder
    extra["listeners"] = [
        {
            "type": "http",
            "port": layout.client_ports["main"],
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["client"]}],
        },
        {
            "type": "http",
            "port": layout.federation_port,
            "bind_addresses": [layout.address],
            "tls": True,
            "resources": [{"names": ["federation"]}],
        },
        {
            "type": "http",
            "port": METRICS_PORT,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": ["metrics", "federation"]}],
        },
        {
            "type": "http",
            "path": str(folder / "client.sock"),
            "resources": [{"names": ["client"]}],
        },
        {
            "type": "http",
            "path": str(folder / "federation.sock"),
            "resources": [{"names": ["federation"]}],
        },
    ]
    with world:
        world.prepare()
        yield world


def test_failures_are_listed(world: Playground) -> None:
    """The newest failures come first, then those that do not fail, by name."""
    rows = world.destinations()
    failing = {remote.server_name for remote in world.failing}
    assert {row["destination"] for row in rows[: len(failing)]} == failing
    assert all(row["retry_interval"] > 0 for row in rows[: len(failing)])
    assert [row["failure_ts"] for row in rows[len(failing) :]] == [None, None]


def test_reset_brings_the_message(world: Playground) -> None:
    """Backoff by a real failure, then reset: what waited arrives, the row is clear."""
    remote = world.remotes[Behaviour.DOWN]
    remote.switch(Behaviour.HEALTHY)

    world.client.reset_connection(remote.server_name)

    remote.wait_for_message(MessageKind.TO_DEVICE, WAITING_TO_DEVICE, SOON_S)
    row = world.client.destination(remote.server_name)
    assert (row["retry_last_ts"], row["retry_interval"]) == (0, 0)
    assert row["failure_ts"] is None


def test_still_failing(world: Playground) -> None:
    """What still fails is soon in backoff again, failing since when it really is."""
    remote = world.remotes[Behaviour.EXPIRED_CERTIFICATE]
    before = world.client.destination(remote.server_name)
    reset_ts = int(time.time() * 1000)

    world.client.reset_connection(remote.server_name)

    def failing_again() -> bool:
        row = world.client.destination(remote.server_name)
        return (
            row["retry_last_ts"] >= reset_ts
            and row["failure_ts"] == before["failure_ts"]
        )

    wait_until(failing_again, "the old failure_ts with new timings", 30)


def unreachable_destination(world: Playground, address: str) -> tuple[str, int]:
    """Have Synapse fail to reach a server that it has nothing queued for.

    Returns:
        Its server name, and the port, on which nobody listens.
    """
    port = free_port(address)
    name = f"{address}:{port}"
    world.client.query_keys(f"@x:{name}")
    wait_until(
        lambda: name in {r["destination"] for r in world.destinations()},
        "Synapse to store the failure",
        30,
    )
    return name, port


def test_nothing_queued_is_contacted(world: Playground) -> None:
    """A destination for which nothing waits is contacted all the same."""
    name, port = unreachable_destination(world, "127.0.0.20")
    with socket.create_server(("127.0.0.20", port)) as server:
        server.settimeout(2)
        world.client.reset_connection(name)
        connection, _ = server.accept()
        connection.close()


@pytest.mark.parametrize(
    ("beginning", "endless"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 8192 + b"\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
    ids=["body", "headers", "continue"],
)
def test_hostile_answer(world: Playground, beginning: bytes, endless: bytes) -> None:
    """A server whose answer to the contact has no end costs neither time nor memory."""
    name, port = unreachable_destination(world, "127.0.0.21")
    certificate = world.certificates.valid("127.0.0.21")
    sent = []

    def serve(server: socket.socket) -> None:
        accepted, _ = server.accept()
        with certificate.wrap_socket(accepted, server_side=True) as connection:
            connection.settimeout(10)
            connection.recv(65536)
            connection.sendall(beginning)
            deadline = time.monotonic() + 10
            try:
                while time.monotonic() < deadline:
                    connection.sendall(endless)
                    sent.append(len(endless))
            except (OSError, ssl.SSLError):
                return

    process = psutil.Process(world.synapse.process("main").pid)
    before = process.memory_info().rss
    with socket.create_server(("127.0.0.21", port)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        world.client.reset_connection(name)
        thread.join(15)

    assert not thread.is_alive()
    assert 0 < sum(sent) < 16 * 1024 * 1024
    assert process.memory_info().rss - before < 32 * 1024 * 1024


def test_hanging_server_does_not_hold_the_answer_up(world: Playground) -> None:
    """Of many resets at once one is done, and all are answered without waiting."""
    remote = world.remotes[Behaviour.HANGING]
    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda _: (
                    world.client.http.post(
                        f"{FEDERATION}/destinations/{remote.server_name}/reset_connection"
                    ).status_code
                ),
                range(20),
            )
        )
    assert time.monotonic() - started < SOON_S
    assert answers.count(200) == 1
    assert answers.count(400) == 19
    # The sender's own attempt and ours.
    time.sleep(1)
    assert 1 <= sum(c.monotonic >= started for c in remote.connections) <= 2


def test_other_listeners(world: Playground) -> None:
    """Federation and metrics listeners serve no route of ours, to an admin either."""
    authority = ssl.create_default_context(cafile=str(world.certificates.path))
    for base in (world.synapse.federation_url, f"http://127.0.0.1:{METRICS_PORT}"):
        for route in ROUTES:
            answer = httpx.request(
                route.method,
                base + route.path.replace("<destination>", "a"),
                headers={"Authorization": f"Bearer {world.admin.access_token}"},
                verify=authority,
                trust_env=False,
            )
            assert answer.status_code == 404
            assert answer.json()["errcode"] == "M_UNRECOGNIZED"


def test_unix_sockets(world: Playground) -> None:
    """All Unix sockets share one tag: each still serves only what it carries."""
    for name, status in (("client", 200), ("federation", 404)):
        path: Path = world.synapse.folder / f"{name}.sock"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            answer = client.get(
                f"http://localhost{FEDERATION}/destinations",
                headers={"Authorization": f"Bearer {world.admin.access_token}"},
            )
        assert answer.status_code == status, answer.text


def test_raw_and_encoded_names(world: Playground) -> None:
    """`127.0.0.2:18448` is found raw and percent-encoded, over real HTTP."""
    name = world.remotes[Behaviour.HEALTHY].server_name
    for path in (name, name.replace(":", "%3A")):
        answer = world.client.request("GET", f"{FEDERATION}/destinations/{path}")
        assert answer["destination"] == name
