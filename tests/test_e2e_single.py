# SPDX-License-Identifier: Apache-2.0
"""One real Synapse process on SQLite, and remote servers that fail for real."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest
from deadlines import AT_ONCE_S, SOON_S
from listener import Listener

from synapse_federation_admin.playground import check as main_job
from synapse_federation_admin.playground.client import FEDERATION
from synapse_federation_admin.playground.processes import (
    PlaygroundError,
    free_port,
    wait_until,
)
from synapse_federation_admin.playground.remote import Behaviour
from synapse_federation_admin.playground.world import Playground

pytestmark = pytest.mark.e2e

METRICS_PORT = free_port()
ADDRESS = "127.0.0.21"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """Five remote servers that fail, and two that do not."""
    folder = tmp_path_factory.mktemp("world")
    listeners = [
        {"port": METRICS_PORT, "bind_addresses": ["127.0.0.1"]},
        {"path": str(folder / "client.sock")},
        {"path": str(folder / "federation.sock")},
    ]
    names = [["metrics", "federation"], ["client"], ["federation"]]
    with Playground(
        folder,
        extra_config={"enable_metrics": True},
        extra_listeners=[
            {**listener, "type": "http", "resources": [{"names": served}]}
            for listener, served in zip(listeners, names, strict=True)
        ],
    ) as world:
        world.prepare()
        yield world


def test_main_job_fails(world: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main job fails if the reset clears nothing, or the message stays away."""
    monkeypatch.setattr(main_job, "_ARRIVAL_TIMEOUT_S", 3)
    with monkeypatch.context() as patch:
        patch.setattr(world.client, "reset_connection", lambda _: {})
        with pytest.raises(PlaygroundError, match="has not cleared"):
            main_job.check(world)
    remote = world.remotes[Behaviour.DOWN]
    remote.switch(Behaviour.DOWN)
    with monkeypatch.context() as patch:
        # It does not come up.
        patch.setattr(remote, "switch", lambda _: None)
        with pytest.raises(PlaygroundError):
            main_job.check(world)
    wait_until(
        lambda: world.client.destination(remote.server_name)["failure_ts"],
        "it to be failing again",
        90,
    )


def test_main_job(world: Playground) -> None:
    """What fails is listed, explained and reset, and what waited arrives."""
    result = main_job.check(world)
    assert max(result.pdu_s, result.to_device_s) < AT_ONCE_S


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
    port = free_port(ADDRESS)
    name = f"{ADDRESS}:{port}"
    # Nobody listens there yet.
    world.client.query_keys(f"@x:{name}")
    wait_until(
        lambda: name in {r["destination"] for r in world.destinations()},
        "Synapse to store the failure",
        90,
    )
    certificate = world.certificates.valid(ADDRESS)
    sent = []
    ended = threading.Event()

    def serve(accepted: socket.socket) -> None:
        accepted.settimeout(SOON_S)
        with certificate.wrap_socket(accepted, server_side=True) as connection:
            connection.recv(65536)
            connection.sendall(beginning)
            with suppress(OSError):
                while True:
                    connection.sendall(endless)
                    sent.append(len(endless))
            ended.set()

    process = psutil.Process(world.synapse.process("main").pid)
    before = process.memory_info().rss
    with Listener(ADDRESS, port, serve):
        world.client.reset_connection(name)
        assert ended.wait(SOON_S)

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
    assert time.monotonic() - started < AT_ONCE_S
    assert answers.count(200) == 1
    assert answers.count(400) == 19
    # The sender's own attempt and ours, each perhaps repeated by now.
    wait_until(
        lambda: any(at >= started for at in remote.connections), "a connection", SOON_S
    )
    time.sleep(1)
    assert sum(at >= started for at in remote.connections) <= 4


def test_other_listeners(world: Playground) -> None:
    """What carries no admin API serves none of ours, to an admin either.

    All Unix sockets share one tag: each still serves only what it carries.
    """
    authority = world.certificates.client_context()
    for base, socket_name, status in (
        (f"https://{world.synapse.server_name}", None, 404),
        (f"http://127.0.0.1:{METRICS_PORT}", None, 404),
        ("http://localhost", "federation.sock", 404),
        ("http://localhost", "client.sock", 200),
    ):
        path = None if socket_name is None else str(world.folder / socket_name)
        transport = httpx.HTTPTransport(verify=authority, uds=path, trust_env=False)
        with httpx.Client(transport=transport) as client:
            answer = client.get(
                f"{base}{FEDERATION}/destinations",
                headers={"Authorization": f"Bearer {world.admin.access_token}"},
            )
        assert answer.status_code == status, (base, socket_name, answer.text)
        if status == 404:
            assert answer.json()["errcode"] == "M_UNRECOGNIZED"
