# SPDX-License-Identifier: Apache-2.0
"""Servers that begin to fail together, for real: is it us, or something they share?"""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attr
import pytest
from dns_server import SERVFAIL, SILENCE
from fleet import select
from laboratory import ZONE, Laboratory, as_json, hang

from synapse_federation_admin.playground.client import ApiError, MatrixClient
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.synapse import SynapseServer

# What is recorded of failures, on each Synapse, test_e2e_failures shows.
pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.one_synapse]

# One attempt, and no long one.
QUICK = {
    "federation_ip_range_blacklist": [],
    "federation": {
        "client_timeout": "5s",
        "max_long_retries": 0,
        "max_long_retry_delay": "1s",
    },
}


def receive(connection: ssl.SSLSocket) -> None:
    """Take a transaction, to its end."""
    connection.sendall(as_json({"pdus": {}}, b"Connection: close\r\n"))
    hang(connection)


@attr.s(slots=True, auto_attribs=True)
class World:
    laboratory: Laboratory
    synapse: SynapseServer
    client: MatrixClient

    def serve(self, label: str) -> str:
        """Serve what takes transactions; return its name."""
        address = self.laboratory.address()
        name = self.laboratory.name(label, address)
        self.laboratory.serve(address, 8448, receive, name)
        return name

    def send(self, names: list[str]) -> None:
        for name in names:
            self.client.send_to_device(f"@x:{name}", "hello")

    def get(self, path: str) -> Any:
        return self.client.request("GET", f"/_synapse/admin/v2/federation/{path}")

    def wait_for(self, names: list[str], key: str) -> None:
        """Wait until there is something of each in its detail."""
        for name in names:

            def is_there(name: str = name) -> bool:
                try:
                    return self.get(f"destinations/{name}")[key] is not None
                except ApiError as e:
                    if e.status != 404:
                        raise
                    # Nothing is known of it yet.
                    return False

            wait_until(is_there, f"{key} of {name}", 30)

    def outlook(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("summary")["outlook"]
        return found


@contextmanager
def world(folder: Path, **history: bool) -> Iterator[World]:
    with (
        Laboratory(folder) as laboratory,
        SynapseServer(
            folder / "synapse",
            laboratory.certificates,
            module_config={"history": history},
            extra_config=QUICK,
            wrapper=laboratory.wrapper,
        ) as synapse,
    ):
        client = synapse.client(synapse.create_user("admin", admin=True))
        yield World(laboratory, synapse, client)


@pytest.mark.parametrize("broken", [SERVFAIL, SILENCE])
def test_resolver(tmp_path: Path, broken: str) -> None:
    """When the resolver breaks, that is said, and with which kind servers fail."""
    with world(tmp_path) as w:
        names = [w.serve(f"up{number}") for number in range(7)]
        w.send(names)
        w.wait_for(names, "last_success_ts")
        assert w.outlook()["verdict"] == "normal"
        for name in names[:6]:
            for service in ("", "_matrix-fed._tcp.", "_matrix._tcp."):
                for kind in ("A", "AAAA", "SRV"):
                    w.laboratory.dns.records[service + name, kind] = broken
        w.send(names)
        w.wait_for(names[:6], "last_failure")
        found = w.outlook()
    assert found["verdict"] == "us", found
    assert found["explanation"] == (
        "85 % of servers tried in the last 15 minutes fail with dns_failed: the "
        "resolver of this host is the likely cause"
    )
    assert found["last_15_minutes"]["tried"] == 7


def test_address(tmp_path: Path) -> None:
    """When what fails leads to one address, that is told, and which."""
    with world(tmp_path) as w:
        shared = w.laboratory.address()
        names = [w.laboratory.name(f"shared{number}", shared) for number in range(6)]
        server = w.laboratory.serve(shared, 8448, receive, *names)
        others = [w.serve(f"other{number}") for number in range(3)]
        w.send([*names, *others])
        w.wait_for([*names, *others], "last_success_ts")
        server.close()
        w.send([*names, *others])
        w.wait_for(names, "last_failure")
        # It is looked up where they lead soon after a start, and once a minute.
        w.synapse.restart()
        wait_until(lambda: w.outlook()["verdict"] == "shared", "a shared cause", 30)
        found = w.outlook()
    assert "6 of 6 servers that began to fail" in found["explanation"]
    assert f"lead to the address {shared}" in found["explanation"]
    causes = {(c["type"], c["value"]) for c in found["last_hour"]["shared"]}
    assert causes == {("kind", "connection_refused"), ("address", shared)}


def test_look_up_servers(tmp_path: Path) -> None:
    """With `look_up_servers: false`, nothing is asked that no admin has asked for.

    Not where servers lead that fail, and not whether it is the DNS.
    """
    took_s = 0.0
    for looks_up in (True, False):
        folder = tmp_path / str(looks_up)
        folder.mkdir()
        with world(folder, look_up_servers=looks_up) as w:
            address = w.laboratory.address()
            names = [w.laboratory.name(f"shared{n}", address) for n in range(6)]
            web = w.laboratory.serve(address, 443, {}, *names)
            w.send(names)
            w.wait_for(names, "last_failure")
            if not looks_up:
                for service in ("", "_matrix-fed._tcp.", "_matrix._tcp."):
                    for kind in ("A", "AAAA", "SRV"):
                        name = f"{service}silent.{ZONE}"
                        w.laboratory.dns.records[name, kind] = SILENCE
                w.send([f"silent.{ZONE}"])
                w.wait_for([f"silent.{ZONE}"], "last_failure")
                failure = w.get(f"destinations/silent.{ZONE}")["last_failure"]
                # Else it is found to be the DNS, as above.
                assert failure["kind"] == "connection_timeout"
            asked, requests = w.laboratory.dns.asked, web.requests
            # On a slow machine that was a minute: they may be looked up already.
            select(w.synapse, "DELETE FROM federation_admin_addresses")
            w.synapse.restart()
            asked.clear()
            requests.clear()
            began_s = time.monotonic()
            if looks_up:
                wait_until(lambda a=asked, r=requests: a and r, "look-ups", 60)
                took_s = time.monotonic() - began_s
            else:
                # As long as it took, and as long again.
                time.sleep(2 * took_s)
                assert (asked, requests) == ([], [])
                assert w.outlook()["verdict"] != "shared"
