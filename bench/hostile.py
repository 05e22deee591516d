# SPDX-License-Identifier: Apache-2.0
"""Measure what hostile surroundings do to a homeserver, beside what is allowed.

Each scenario starts a real Synapse with the module, does to it what its name says, and
samples its process all the while. Prints a table in Markdown: file descriptors and
threads at most, how far the resident memory rises, how long `/health` takes at worst
and in the median, and how far the scenario has come. "!" marks what is over its aim.

Needs root: name servers are at port 53, and Synapse has a resolver of its own, in a
mount namespace.

    tox -e bench
    python bench/hostile.py silent-dns
"""

import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
from attrs import frozen
from probe import Watch, watch_of

from synapse_federation_admin import limits
from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient, quoted
from synapse_federation_admin.playground.remote import RemoteServer
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from dns_server import silent
from fleet import select, write_failing
from own_resolver import with_resolver

FAILING_SINCE_TS = 1_600_000_000_000
SILENT_ADDRESS = "127.77.0.53"

DESTINATIONS = 20_000
WATCHED_S = 90

READERS = 200
LISTED = 100_000
UNREAD_S = 20
TIMES = 5

FLAPS_S = 60
PAGE = 100
DAY_MS = 86_400_000
TIMED = 20
V2 = "/_synapse/admin/v2/federation/destinations"


@frozen
class Surroundings:
    """A homeserver to which something is done."""

    synapse: SynapseServer
    certificates: CertificateAuthority
    client: MatrixClient
    """Its admin."""
    watch: Watch
    """Of its main process."""


@frozen
class Scenario:
    """What is done to a homeserver, and what it may cost at most."""

    run: Callable[[Surroundings], str]
    """Does it, while it is watched; returns in a few words how far it came."""
    most_descriptors: int
    most_mib: float
    most_health_ms: float


def silent_dns(at: Surroundings) -> str:
    """Reconnect all of many while no name server answers."""
    names = [f"host{number:05}.example" for number in range(DESTINATIONS)]
    write_failing(at.synapse, names, failing_since_ts=FAILING_SINCE_TS)
    with at.watch:
        run_id = at.client.start_run(all_failing=True, per_second=500, timeout_ms=1000)
        ends_s = time.monotonic() + WATCHED_S
        while time.monotonic() < ends_s:
            time.sleep(0.5)
            run = at.client.run(run_id["id"])
            if run["ended_ts"]:
                break
    counts = ", ".join(f"{kind} {e['count']}" for kind, e in run["errors"].items())
    return f"{run['done']} of {run['matched']} done ({counts or 'no errors'})"


def readers(at: Surroundings) -> str:
    """Ask for long lists on many connections, and read nothing."""
    names = [f"host{number:06}.example" for number in range(LISTED)]
    write_failing(at.synapse, names, failing_since_ts=FAILING_SINCE_TS)
    # Whatever memory it takes once, it has taken then.
    at.client.destinations(limit=LISTED)
    process = psutil.Process(at.synapse.process("main").pid)
    paths = (
        f"{V2}/export?format=csv",
        f"{V2}/export?order_by=failure_ts",
        f"{V2.replace('v2', 'v1')}?limit={LISTED}",
    )
    token, kept = at.client.access_token, []
    with at.watch:
        # What stays the first times are pages of memory in which something small lies
        # that is used on: what is taken next finds room there.
        for _ in range(TIMES):
            before = process.memory_info().rss
            with ExitStack() as stack:
                connections = []
                for number in range(READERS):
                    connection = stack.enter_context(socket.socket())
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.settimeout(60)
                    connection.connect(
                        ("127.0.0.1", at.synapse.layout.client_ports["main"])
                    )
                    connection.sendall(
                        f"GET {paths[number % len(paths)]} HTTP/1.1\r\n"
                        "Host: localhost\r\n"
                        f"Authorization: Bearer {token}\r\n\r\n".encode()
                    )
                    connections.append(connection)
                time.sleep(UNREAD_S)
                codes = [connection.recv(12)[-3:] for connection in connections]
            time.sleep(UNREAD_S)
            kept.append(f"+{(process.memory_info().rss - before) / 2**20:.0f} MiB")
    return (
        f"{codes.count(b'200')} of {READERS} served, {codes.count(b'429')} told when "
        f"to come again; {', '.join(kept)} kept after each of {TIMES} times"
    )


def flapping_server(at: Surroundings) -> str:
    """Have a server fail every transaction, and ask something, every second."""
    us = at.synapse.server_name
    path = "/_matrix/federation/v1/query/profile?user_id=" + quoted(f"@admin:{us}")
    remote = RemoteServer("127.0.0.41", at.certificates)
    remote.special = lambda path, _: (502, {}) if "/send/" in path else None
    with remote, at.watch:
        ends_s = time.monotonic() + FLAPS_S
        while time.monotonic() < ends_s:
            at.client.send_to_device(f"@x:{remote.server_name}", "hello")
            time.sleep(0.5)
            header = remote.identity.authorization("GET", path, us, None)
            httpx.get(
                f"https://{us}{path}",
                headers={"Authorization": header},
                verify=at.certificates.client_context(),
                trust_env=False,
            ).raise_for_status()
            time.sleep(0.5)
    count = "SELECT SUM(count) FROM federation_admin_failures"
    ((failures,),) = select(at.synapse, count)
    ((rows,),) = select(at.synapse, "SELECT COUNT(*) FROM federation_admin_outages")
    return (
        f"{rows} rows of {failures} failures in {FLAPS_S} s; availability of a page of "
        f"{PAGE} such takes {availability_ms(at):.0f} ms"
    )


def availability_ms(at: Surroundings) -> float:
    """Return how much longer a page takes with it, of servers that flap for ever."""
    names = [f"flaps{number:03}.example" for number in range(PAGE)]
    write_failing(at.synapse, names, failing_since_ts=FAILING_SINCE_TS)
    now_ms = int(time.time() * 1000)
    apart_ms = DAY_MS // limits.OUTAGES_A_DAY
    for name in names:
        values = ", ".join(
            f"('{name}', {start_ts}, {start_ts + apart_ms // 2}, 'recovered', "
            f"'http_error', 'http_error', {apart_ms // 4})"
            for start_ts in range(now_ms - 14 * DAY_MS, now_ms - apart_ms, apart_ms)
        )
        select(at.synapse, f"INSERT INTO federation_admin_outages VALUES {values}")  # noqa: S608

    def took_ms(query: str) -> float:
        found = []
        for _ in range(TIMED):
            begun_s = time.monotonic()
            at.client.request("GET", f"{V2}?limit={PAGE}&destination=flaps{query}")
            found.append((time.monotonic() - begun_s) * 1000)
        return statistics.median(found)

    return took_ms("&include=availability") - took_ms("")


SCENARIOS = {
    "silent-dns": Scenario(silent_dns, 600, 32, 100),
    "200-readers": Scenario(readers, 600, 100, 100),
    "flapping-server": Scenario(flapping_server, 600, 32, 100),
}


def main() -> None:
    """Measure and print."""
    names = sys.argv[1:] or list(SCENARIOS)
    print("| | descriptors | threads | memory | `/health` worst, median | |")
    print("|---|---|---|---|---|---|")
    for name in names:
        scenario = SCENARIOS[name]
        with surroundings() as at:
            came = scenario.run(at)
        watch, health = at.watch, at.watch.health.samples
        print(
            f"| {name} | {against(watch.descriptors, scenario.most_descriptors)} "
            f"| {watch.threads} | +{against(watch.growth_mib, scenario.most_mib)} MiB "
            f"| {against(max(health), scenario.most_health_ms)} ms, "
            f"{statistics.median(health):.1f} ms | {came} |",
            flush=True,
        )


def against(found: float, most: float) -> str:
    """Return a figure, marked if it is over its aim."""
    return f"{found:.0f}{'!' if found > most else ''}"


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """Start a homeserver whose resolver takes every query and answers none."""
    with tempfile.TemporaryDirectory() as name, silent(SILENT_ADDRESS):
        folder = Path(name)
        certificates = CertificateAuthority(folder)
        with SynapseServer(
            folder / "synapse",
            certificates,
            wrapper=with_resolver(folder, SILENT_ADDRESS),
        ) as synapse:
            client = synapse.client(synapse.create_user("admin", admin=True))
            yield Surroundings(synapse, certificates, client, watch_of(synapse))


if __name__ == "__main__":
    main()
