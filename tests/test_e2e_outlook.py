# SPDX-License-Identifier: Apache-2.0
"""Servers that begin to fail together, for real: is it us, or something they share?"""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attr
import pytest
from fleet import select
from laboratory import ZONE, Answer, Laboratory, Server, as_json, hang
from real_synapse import Admin, RealSynapse
from shifted_clock import ShiftedClock

from synapse_federation_admin.playground.client import ApiError
from synapse_federation_admin.playground.processes import wait_until

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


DAY_S = 86_400


def receive(connection: ssl.SSLSocket) -> None:
    """Take a transaction, to its end."""
    connection.sendall(as_json({"pdus": {}}, b"Connection: close\r\n"))
    hang(connection)


@attr.s(slots=True, auto_attribs=True)
class World:
    laboratory: Laboratory
    synapse: RealSynapse
    client: Admin
    clock: ShiftedClock
    addresses: dict[str, str] = attr.Factory(dict)
    servers: dict[str, Server] = attr.Factory(dict)

    def serve(self, *names: str, address: str = "", answers: Answer = receive) -> None:
        """Serve what takes transactions, each at an address of its own by default."""
        for name in names:
            known = self.addresses.get(name)
            self.addresses[name] = known or address or self.laboratory.address()
            if not known:
                self.laboratory.dns.add(name, "A", self.addresses[name])
        for at in {self.addresses[name] for name in names}:
            there = [name for name in names if self.addresses[name] == at]
            server = self.laboratory.serve(at, 8448, answers, *there)
            self.servers.update(dict.fromkeys(there, server))

    def close(self, *names: str) -> None:
        for server in {id(self.servers[n]): self.servers[n] for n in names}.values():
            server.close()

    def send(self, names: list[str]) -> None:
        for name in names:
            self.client.send_to_device(f"@x:{name}", "hello")

    def succeed(self, names: list[str]) -> None:
        """Send, and wait until it is known that they have answered."""
        since_ts = self.clock.now_ms
        self.send(names)
        self._wait_for(names, lambda d: (d["last_success_ts"] or 0) >= since_ts)

    def fail(self, names: list[str]) -> None:
        """Send, and wait until it is known that they have failed."""
        self.send(names)
        self._wait_for(names, lambda d: d["last_failure"])

    def _wait_for(self, names: list[str], is_so: Callable[[Any], Any]) -> None:
        for name in names:

            def is_there(name: str = name) -> bool:
                try:
                    return bool(is_so(self.client.detail(name)))
                except ApiError as e:
                    if e.status != 404:
                        raise
                    # Nothing is known of it yet.
                    return False

            wait_until(is_there, f"what comes of {name}", 60)

    def grow_old(self, names: list[str]) -> None:
        """Have servers answer now, and a day later."""
        self.succeed(names)
        self.clock.jump(DAY_S)
        self.synapse.restart()
        self.succeed(names)

    def outlook(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.v2("summary")["outlook"]
        return found


@contextmanager
def world(folder: Path, ahead_s: float = 0, **history: bool) -> Iterator[World]:
    clock = ShiftedClock(folder / "clock", time.time() + ahead_s)
    with (
        Laboratory(folder) as laboratory,
        RealSynapse(
            folder,
            laboratory.certificates,
            module_config={"history": history},
            extra_config=QUICK,
            wrapper=[*laboratory.wrapper, *clock.wrapper],
        ) as synapse,
    ):
        yield World(laboratory, synapse, synapse.as_admin(), clock)


def test_resolver(tmp_path: Path) -> None:
    """When the resolver breaks, that is said, and with which kind servers fail."""
    with world(tmp_path) as w:
        names = [f"up{number}.example" for number in range(7)]
        w.serve(*names)
        w.grow_old(names)
        assert w.outlook()["verdict"] == "normal"
        w.laboratory.dns.ignore(*names[:6])
        w.fail(names[:6])
        # Where reading it takes long, it is that of ten seconds ago.
        wait_until(lambda: w.outlook()["verdict"] == "us", "a cause of ours", 60)
        found = w.outlook()
    assert found["explanation"] == (
        "85 % of long-known servers tried in the last 15 minutes fail with dns_failed: "
        "the resolver of this host is the likely cause"
    )
    assert found["last_15_minutes"]["tried"] == 7


def test_address(tmp_path: Path) -> None:
    """When what fails leads to one address, that is told, and which."""
    with world(tmp_path) as w:
        shared = w.laboratory.address()
        names = [f"shared{number}.example" for number in range(6)]
        others = [f"other{number}.example" for number in range(3)]
        w.serve(*names, address=shared)
        w.serve(*others)
        w.grow_old([*names, *others])
        w.close(*names)
        w.fail(names)
        # It is looked up where they lead soon after a start, and once a minute.
        w.synapse.restart()
        wait_until(lambda: w.outlook()["verdict"] == "shared", "a shared cause", 90)
        found = w.outlook()
    assert "6 of 6 long-known servers that began to fail" in found["explanation"]
    assert f"lead to the address {shared}" in found["explanation"]
    causes = {(c["type"], c["value"]) for c in found["last_hour"]["shared"]}
    assert causes == {("kind", "connection_refused"), ("address", shared)}


def test_clock_was_ahead(tmp_path: Path) -> None:
    """Of what a clock recorded that was a year ahead, nothing is believed after it.

    What Synapse itself has written so lasts until the connection is reset.
    """
    year_s = 365 * DAY_S
    with world(tmp_path, ahead_s=year_s) as w:
        up, down = "up.example", "down.example"
        w.serve(up, down)
        w.succeed([up, down])
        w.close(down)
        w.fail([down])
        w.clock.jump(-year_s)
        w.synapse.restart()
        now_ts = w.clock.now_ms
        detail = w.client.detail(down)
        assert (detail["last_failure"], detail["last_success_ts"]) == (None, None)
        (outage,) = w.client.outages(down)
        assert outage["start_ts"] <= w.clock.now_ms
        w.succeed([up])
        w.client.reset_connection(down)
        w.fail([down])
        detail = w.client.detail(down)
        assert now_ts <= detail["last_failure"]["last_ts"] <= w.clock.now_ms
        w.serve(down)
        w.client.reset_connection(down)
        w.succeed([down])

        def has_ended() -> bool:
            found = w.client.outages(down)
            return all(o["end_ts"] and o["end_ts"] <= w.clock.now_ms for o in found)

        # Ends are found once a minute.
        w.clock.jump(120)
        wait_until(has_ended, "the end of the outage", 90)
        # Which of the two clocks was wrong is taken for sure only after an hour.
        assert w.client.detail(down)["availability"]["share"] is None


def test_look_up_servers(tmp_path: Path) -> None:
    """With `look_up_servers: false`, nothing is asked that no admin has asked for.

    Why a request has failed is known all the same.
    """
    took_s = 0.0
    for looks_up in (True, False):
        folder = tmp_path / str(looks_up)
        folder.mkdir()
        with world(folder, look_up_servers=looks_up) as w:
            address = w.laboratory.address()
            names = [w.laboratory.name(f"shared{n}", address) for n in range(6)]
            web = w.laboratory.serve(address, 443, {}, *names)
            w.fail(names)
            if not looks_up:
                w.laboratory.dns.ignore(f"silent.{ZONE}")
                w.fail([f"silent.{ZONE}"])
                failure = w.client.detail(f"silent.{ZONE}")["last_failure"]
                # It is learnt of the request itself, which is made in any case.
                assert failure["kind"] == "dns_failed"
            asked, requests = w.laboratory.dns.asked, web.requests
            # On a slow machine that was a minute: they may be looked up already.
            w.synapse.stop()
            select(w.synapse, "DELETE FROM federation_admin_addresses")
            asked.clear()
            requests.clear()
            w.synapse.start()
            began_s = time.monotonic()
            if looks_up:
                wait_until(lambda a=asked, r=requests: a and r, "look-ups", 60)
                took_s = time.monotonic() - began_s
            else:
                # As long as it took, and as long again.
                time.sleep(2 * took_s)
                assert (asked, requests) == ([], [])
                assert w.outlook()["verdict"] != "shared"
