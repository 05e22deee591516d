# SPDX-License-Identifier: Apache-2.0
"""A day of failures, recoveries, resets and restarts, and what is recorded of it.

The day is one of a clock that the test sets, by which Synapse goes; all else is real.
"""

import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attr
import httpx
import pytest
from real_synapse import Admin, RealSynapse, remote_of
from shifted_clock import ShiftedClock

from synapse_federation_admin.playground.client import FEDERATION_V2, quoted
from synapse_federation_admin.playground.configuration import (
    FEDERATION_SENDERS,
    GENERIC_WORKER,
    MAIN,
)
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.remote import Behaviour, RemoteServer

pytestmark = pytest.mark.e2e

DAY_S = 86_400

# The clock goes in steps: several of them until a request that is under way fails.
# Only where nothing happens does it go by hours.
STEP_S = 20
REQUEST_S = 115
LEAP_S = 7200

# How much real time there is after a step, and after a leap, for what it sets off.
SETTLE_S = 0.1
SETTLE_AFTER_LEAP_S = 0.7
WRITTEN_WITHIN_S = 20

# What is recorded exactly is by the clock of another process.
EXACTLY_MS = 500

# Processes write what they have noted three seconds later. A look for ends before that
# takes the time of the look: here, where a step is longer, after the step.
NOT_WRITTEN_YET_MS = STEP_S * 1000

SETTINGS = {
    "federation": {
        "client_timeout": f"{REQUEST_S}s",
        "max_long_retries": 0,
        "max_short_retries": 0,
        "destination_min_retry_interval": "2m",
        "destination_retry_multiplier": 2,
        "destination_max_retry_interval": "10m",
    }
}

KINDS = {
    Behaviour.DOWN: "connection_refused",
    Behaviour.EXPIRED_CERTIFICATE: "tls_expired",
    Behaviour.WRONG_NAME_CERTIFICATE: "tls_wrong_name",
    Behaviour.BAD_GATEWAY: "http_error",
    Behaviour.HANGING: "response_timeout",
}

# What a request meets that is under way when a server begins to behave differently: it
# is cut, in its answer or in its handshake.
CUT = {"invalid_response", "tls_failed"}


@attr.s(slots=True, auto_attribs=True)
class Expected:
    """An outage of the script: between which times it began and ended."""

    began: tuple[int, int]
    kinds: set[str]
    end: tuple[int, int] | None = None
    ended: str | None = None
    may_be: set[str] = attr.Factory(set)

    def is_met_by(self, outage: dict[str, Any]) -> bool:
        """Tell whether what is recorded is this."""
        start_ts, end_ts = outage["start_ts"], outage["end_ts"]
        return (
            _within(start_ts, self.began)
            and (end_ts is None) == (self.end is None)
            and (self.end is None or _within(end_ts, self.end))
            and outage["ended"] == self.ended
            and set(outage["kinds"]) - self.may_be == self.kinds
        )


class Server:
    """A remote server, and what the script has done to it."""

    def __init__(self, remote: RemoteServer, shares_room: bool) -> None:
        self.remote = remote
        self.name = remote.server_name
        self.shares_room = shares_room
        self.outages: list[Expected] = []


class Day:
    """Has Synapse and remote servers go through a day."""

    def __init__(self, folder: Path, stack: ExitStack, *, workers: bool) -> None:
        yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(1)
        self.midnight_s = yesterday.timestamp() // DAY_S * DAY_S
        self.clock = ShiftedClock(folder / "clock", self.midnight_s + 600)
        self.synapse = stack.enter_context(
            RealSynapse(
                folder,
                workers=workers,
                extra_config=SETTINGS,
                wrapper=self.clock.wrapper,
            )
        )
        self.clients = [
            self.synapse.as_admin(process)
            for process in (MAIN, GENERIC_WORKER)
            if process in self.synapse.processes
        ]
        for client in self.clients:
            # None is left open over a jump of the clock.
            client.http.headers["Connection"] = "close"
        self.client = self.clients[0]
        self.room_id = self.client.create_room()
        self._plain = stack.enter_context(
            httpx.Client(headers={"Connection": "close"}, trust_env=False)
        )
        self._stack = stack
        self._count = 0

    def server(self, *, shares_room: bool = False) -> Server:
        """Start a remote server, in turn one of each federation sender."""
        self._count += 1
        sender, address = FEDERATION_SENDERS[self._count % 2], 90 + self._count
        remote = remote_of(sender, f"127.0.0.{address}", self.synapse.certificates)
        self._stack.enter_context(remote)
        if shares_room:
            remote.join_room(self.room_id, self.synapse.server_name)
        return Server(remote, shares_room)

    # -- time ------------------------------------------------------------------------

    def wait(self, *, minutes: float = 0, seconds: float = 0) -> None:
        """Let time pass, as it does for Synapse."""
        left_s = minutes * 60 + seconds
        while left_s > 0:
            self._step(min(left_s, STEP_S))
            left_s -= STEP_S

    def wait_until(self, hour: int, minute: int = 0) -> None:
        """Let hours pass in which nothing happens."""
        time.sleep(SETTLE_AFTER_LEAP_S)
        to_ms = (self.midnight_s + hour * 3600 + minute * 60) * 1000
        while (left_s := (to_ms - self.clock.now_ms) / 1000) > 0:
            self._step(min(left_s, LEAP_S))
            time.sleep(SETTLE_AFTER_LEAP_S)

    def _step(self, seconds: float) -> None:
        self.clock.jump(seconds)
        # A reactor that waits for its next timer does not know of it before it wakes.
        for name in self.synapse.processes:
            if self.synapse.process(name).running:
                self._plain.get(f"{self.synapse.url(name)}/health")
        time.sleep(SETTLE_S)

    # -- what happens ----------------------------------------------------------------

    def failing(self, servers: Iterable[Server]) -> list[bool]:
        rows = self.client.destinations(limit=100)["destinations"]
        failing = {row["destination"] for row in rows if row["failure_ts"]}
        return [server.name in failing for server in servers]

    def fail(self, broken: dict[Server, Behaviour]) -> None:
        """Have servers fail with real traffic, at this minute."""
        for server, behaviour in broken.items():
            server.remote.switch(behaviour)
        begun_ms = self.clock.now_ms
        for server in broken:
            self.client.send_to_device(f"@x:{server.name}", "hello")
        if any(server.shares_room for server in broken):
            self.client.send_message(self.room_id, "hello")
        quick = [s for s, b in broken.items() if b is not Behaviour.HANGING]
        self._until(lambda: all(self.failing(quick)), "servers to fail")
        quick_ms = self.clock.now_ms
        if len(quick) < len(broken):
            self.wait(seconds=REQUEST_S + 5)
            self._until(lambda: all(self.failing(broken)), "what hangs to fail")
        for server, behaviour in broken.items():
            ended_ms = quick_ms if server in quick else self.clock.now_ms
            new = Expected((begun_ms, ended_ms), {KINDS[behaviour]})
            server.outages.append(new)

    def fails_with(self, server: Server, behaviour: Behaviour) -> None:
        """Have a server that is failing fail differently, when Synapse tries it."""
        server.outages[-1].may_be |= CUT
        server.remote.switch(behaviour)
        self._minute_by_minute(
            lambda: self.last_kind(server) == KINDS[behaviour], "another failure"
        )
        server.outages[-1].kinds.add(KINDS[behaviour])

    def recover(self, servers: Sequence[Server]) -> None:
        """Have servers be up again, and Synapse find out by itself."""
        for server in servers:
            if server.remote.behaviour is Behaviour.HANGING:
                server.outages[-1].may_be |= CUT
            server.remote.switch(Behaviour.HEALTHY)
        left = list(servers)
        before_ms = self.clock.now_ms

        def look() -> bool:
            nonlocal before_ms
            for server, failing in zip(tuple(left), self.failing(left), strict=True):
                if not failing:
                    left.remove(server)
                    self._ended(server, "recovered", before_ms)
            before_ms = self.clock.now_ms
            return not left

        self._minute_by_minute(look, "servers to recover")

    def come_back(self, *servers: Server) -> None:
        """Have servers be up again, and ask Synapse something."""
        self._until_quiet()
        for server in servers:
            server.remote.switch(Behaviour.HEALTHY)
            begun_ms = self.clock.now_ms
            self._ask(server)
            self._until(lambda: not any(self.failing([server])), "Synapse to see it")  # noqa: B023
            self._ended(server, "recovered", begun_ms)

    def _ask(self, server: Server) -> None:
        """Have a remote server ask Synapse something."""
        us = self.synapse.server_name
        path = "/_matrix/federation/v1/query/profile?user_id=" + quoted(f"@admin:{us}")
        header = server.remote.identity.authorization("GET", path, us, None)
        httpx.get(
            f"https://{us}{path}",
            headers={"Authorization": header},
            verify=self.synapse.certificates.client_context(),
            trust_env=False,
        ).raise_for_status()

    def repair(self, server: Server, how: Callable[[Admin, Server], Any]) -> None:
        """Repair the connection to a server, which is up."""
        self._until_quiet()
        server.remote.switch(Behaviour.HEALTHY)
        begun_ms = self.clock.now_ms
        how(self.clients[-1], server)
        self._until(lambda: not any(self.failing([server])), "the repair")
        self._ended(server, "reset", begun_ms)

    def repair_in_vain(
        self, server: Server, how: Callable[[Admin, Server], Any]
    ) -> None:
        how(self.clients[-1], server)
        self._until(lambda: all(self.failing([server])), "it to fail again")

    def forget(self, server: Server) -> None:
        self._until_quiet()
        begun_ms = self.clock.now_ms
        answer = self.client.request(
            "POST",
            f"{FEDERATION_V2}/destinations/{quoted(server.name)}/forget",
            json={"dry_run": False, "drop_to_device": True},
        )
        assert answer["forgotten"], answer
        self._ended(server, "forgotten", begun_ms)

    def _ended(self, server: Server, how: str, begun_ms: int) -> None:
        # That a reset was of use is known a moment after it.
        late_ms = 0 if how == "forgotten" else NOT_WRITTEN_YET_MS
        server.outages[-1].ended = how
        server.outages[-1].end = (begun_ms, self.clock.now_ms + late_ms)

    def _until_quiet(self) -> None:
        """Let attempts end that are under way, and would undo what is done now."""
        time.sleep(0.5)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what, 90, 0.02)

    def _minute_by_minute(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(40 * 3):
            if condition():
                return
            self.wait(seconds=STEP_S)
        raise AssertionError(f"Waited 40 minutes of the clock for {what}")

    # -- restarts --------------------------------------------------------------------

    def restart(self, *names: str) -> None:
        """Restart processes; all of them if none is given."""
        for name in names or self.synapse.processes:
            self.synapse.process(name).ask_to_stop()
        for name in names or self.synapse.processes:
            self.synapse.process(name).stop()
        self.start(*names)

    def kill(self) -> None:
        for name in self.synapse.processes:
            self.synapse.process(name).kill()

    def start(self, *names: str) -> None:
        for name in names or self.synapse.processes:
            self.synapse.start(name, wait=False)
        for name in names or self.synapse.processes:
            self.synapse.wait_until_healthy(name)

    # -- what is recorded ------------------------------------------------------------

    def last_kind(self, server: Server) -> str | None:
        found = self.client.detail(server.name)["last_failure"]
        return found["kind"] if found else None

    def names(self, **params: str | int) -> set[str]:
        page = self.client.v2("destinations", **params)
        return {row["destination"] for row in page["destinations"]}

    def check(self, servers: dict[str, Server]) -> list[str]:
        """Return in what the recorded is not, and does not become, what was done.

        What the clock has set off takes real time, on a busy machine more of it. And a
        look over which the clock has jumped has taken long: ten minutes of rest follow.
        """
        ends_s = time.monotonic() + WRITTEN_WITHIN_S
        while (wrong := self._wrong(servers)) and time.monotonic() < ends_s:
            self._step(STEP_S)
        return wrong

    def _wrong(self, servers: dict[str, Server]) -> list[str]:
        wrong = []
        for label, server in servers.items():
            recorded = []
            if server.outages:
                recorded = self.client.outages(server.name)[::-1]
            if len(recorded) != len(server.outages) or not all(
                want.is_met_by(outage)
                for outage, want in zip(recorded, server.outages, strict=True)
            ):
                wrong.append(f"{label}: {recorded}, not {server.outages}")
        return wrong


def _within(ts: int, span: tuple[int, int]) -> bool:
    return span[0] - EXACTLY_MS <= ts <= span[1] + EXACTLY_MS


def _reset(client: Admin, server: Server) -> None:
    client.reset_connection(server.name)


def _reconnect(client: Admin, server: Server) -> None:
    client.reconnect(server.name)


def _force(client: Admin, server: Server) -> None:
    answer = client.reconnect(server.name, force=True)
    assert answer["outcome"] in ("forced", "connected"), answer


def _run(client: Admin, server: Server) -> None:
    client.ended(client.start_run(destinations=[server.name])["id"])


@pytest.fixture(
    params=[
        pytest.param(False, id="sqlite", marks=pytest.mark.one_synapse),
        pytest.param(True, id="cluster"),
    ]
)
def day(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Day]:
    with ExitStack() as stack:
        yield Day(tmp_path, stack, workers=request.param)


def test_day(day: Day) -> None:
    """What is recorded of a day is what has happened, however it began and ended.

    Start and end, the way it ended, and the kinds; in the midst, at the end, and after
    a new start of everything.
    """
    servers = {
        "up": day.server(shares_room=True),
        "by itself": day.server(shares_room=True),
        "hanging": day.server(shares_room=True),
        "comes back": day.server(),
        "reset": day.server(shares_room=True),
        "reconnect": day.server(),
        "run": day.server(),
        "forced": day.server(shares_room=True),
        "forgotten": day.server(),
        "short": day.server(),
    }
    s = servers
    is_cluster = len(day.synapse.processes) > 1
    day.client.send_message(day.room_id, "hello")
    for server in servers.values():
        day.client.send_to_device(f"@x:{server.name}", "hello")
    day.wait(minutes=1)

    # The first outages.
    day.wait_until(1)
    first = {
        s["by itself"]: Behaviour.DOWN,
        s["hanging"]: Behaviour.HANGING,
        s["comes back"]: Behaviour.EXPIRED_CERTIFICATE,
        s["reset"]: Behaviour.BAD_GATEWAY,
        s["reconnect"]: Behaviour.WRONG_NAME_CERTIFICATE,
        s["run"]: Behaviour.DOWN,
        s["forced"]: Behaviour.WRONG_NAME_CERTIFICATE,
        s["forgotten"]: Behaviour.DOWN,
    }
    day.fail(first)
    day.fail({s["short"]: Behaviour.BAD_GATEWAY})
    day.wait(seconds=20)
    day.come_back(s["short"])
    day.wait(minutes=2)

    # In the midst.
    by_kind: dict[str, set[str]] = {}
    for server, behaviour in first.items():
        by_kind.setdefault(KINDS[behaviour], set()).add(server.name)
    for kind, names in by_kind.items():
        assert day.names(failure=kind) == names
    counted = day.client.v2("summary")["failing_by_kind"]
    assert counted == {kind: len(names) for kind, names in by_kind.items()}
    assert not (wrong := day.check(servers)), "\n".join(wrong)

    # Repairs in vain.
    day.repair_in_vain(s["reset"], _reset)
    day.repair_in_vain(s["reconnect"], _reconnect)
    day.repair_in_vain(s["run"], _run)
    day.repair_in_vain(s["forced"], _force)
    day.wait(minutes=2)
    assert not (wrong := day.check(servers)), "\n".join(wrong)

    # A restart in the midst.
    if is_cluster:
        day.restart(*FEDERATION_SENDERS)
    else:
        day.restart()
    day.fails_with(s["reset"], Behaviour.EXPIRED_CERTIFICATE)
    day.wait(minutes=1)
    assert not (wrong := day.check(servers)), "\n".join(wrong)

    # Repairs.
    day.repair(s["reset"], _reset)
    day.repair(s["reconnect"], _reconnect)
    day.repair(s["run"], _run)
    day.forget(s["forgotten"])
    day.come_back(s["comes back"])
    day.recover([s["by itself"], s["hanging"], s["forced"]])
    day.wait(minutes=2)
    assert not (wrong := day.check(servers)), "\n".join(wrong)
    assert not any(day.client.v2("summary")["failing_by_kind"].values())

    day.wait_until(5)
    # A kill in the midst, before anything is written.
    day.fail({s["run"]: Behaviour.DOWN, s["reset"]: Behaviour.DOWN})
    day.kill()
    day.wait(minutes=10)
    day.start()
    day.wait(seconds=5)
    # Why it failed is known only if it was tried again.
    s["run"].outages[-1].may_be = s["run"].outages[-1].kinds
    s["run"].outages[-1].kinds = set()
    day.recover([s["run"]])
    day.wait(minutes=4)
    day.recover([s["reset"]])
    day.wait(minutes=1)
    assert not (wrong := day.check(servers)), "\n".join(wrong)

    # The end.
    day.wait_until(20)
    day.fail({s["hanging"]: Behaviour.DOWN})
    day.wait_until(23, 30)
    wrong = day.check(servers)
    day.restart()
    day.wait(minutes=2)
    wrong += day.check(servers)
    assert wrong == []
