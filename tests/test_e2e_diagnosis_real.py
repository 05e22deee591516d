# SPDX-License-Identifier: Apache-2.0
"""What real traffic met has the last word in a diagnosis, on real processes."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attr
import pytest
from deadlines import SOON_S
from fleet import CONTACT, read_rows

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import MessageKind, RemoteServer
from synapse_federation_admin.playground.synapse import SynapseServer

pytestmark = pytest.mark.e2e

LARGE = "x" * 60_000


@attr.s(slots=True, auto_attribs=True)
class World:
    synapse: SynapseServer
    client: MatrixClient
    certificates: CertificateAuthority

    def remote(self, number: int) -> RemoteServer:
        """Return a server behind a proxy that takes small bodies only."""
        remote = RemoteServer(f"127.0.0.{180 + number}", self.certificates)

        def special(path: str, body: bytes) -> tuple[int, dict[str, Any]] | None:
            if "/send/" in path and len(body) > 10_000:
                return 413, {"errcode": "M_TOO_LARGE", "error": "Too large"}
            return None

        remote.special = special
        return remote

    def send(self, remote: RemoteServer, text: str) -> None:
        self.client.send_to_device(f"@x:{remote.server_name}", text)

    def wait_until_refused(self, remote: RemoteServer) -> None:
        """Wait until Synapse has met it; that may be written nowhere yet."""
        name = remote.server_name
        wait_until(lambda: read_rows(self.synapse).get(name), "a 413", SOON_S)


@pytest.fixture(scope="module", params=[True, False], ids=["history", "off"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("real")
    certificates = CertificateAuthority(folder)
    with SynapseServer(
        folder / "synapse",
        certificates,
        module_config={
            "history": {"enabled": request.param},
            "diagnosis": {"timeout": "60s"},
        },
    ) as synapse:
        admin = synapse.create_user("admin", admin=True)
        yield World(synapse, synapse.client(admin), certificates)


def test_refused(world: World, request: pytest.FixtureRequest) -> None:
    """Three seconds after a real request was refused, nothing is told to be well."""
    has_history = "history" in request.node.name
    with world.remote(1) as remote:
        world.send(remote, "small")
        remote.wait_for_message(MessageKind.TO_DEVICE, "small", SOON_S)
        world.send(remote, LARGE)
        world.wait_until_refused(remote)
        if has_history:
            wait_until(
                lambda: world.client.diagnose(remote.server_name)["kind"],
                "why it was refused to be known",
                SOON_S,
            )
        world.client.diagnose(remote.server_name)
        # That it has answered the requests of a diagnosis says nothing of real ones.
        report = world.client.diagnose(remote.server_name)
        said = f"{report['explanation']} {report['advice']}"
        if has_history:
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
        remote.special = lambda _path, _body: None
        answer = world.client.reconnect(remote.server_name, timeout_ms=30_000)
        assert answer["outcome"] == "connected", answer
        report = world.client.diagnose(remote.server_name)
    assert report["verdict"] == "ok", report
    assert report["stored"]["last_request"] == (
        "succeeded" if has_history else "not_known"
    )
    says = "request succeeded" if has_history else "is not known"
    assert says in report["explanation"], report


def test_under_way(world: World) -> None:
    """While a real transaction is under way, no other is sent: it is the contact."""
    asked, goes_on = threading.Event(), threading.Event()

    def special(path: str, _: bytes) -> None:
        if "/key/" in path:
            asked.set()
        elif "/send/" in path:
            goes_on.wait(SOON_S)

    with world.remote(2) as remote:
        remote.special = special
        world.send(remote, "small")
        is_sent = lambda: any("/send/" in r.path for r in remote.requests)  # noqa: E731
        wait_until(is_sent, "it to be under way", SOON_S)
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
        assert not any(CONTACT in r.path for r in remote.requests)
