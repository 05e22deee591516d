# SPDX-License-Identifier: Apache-2.0
"""Measure diagnoses: of healthy servers that are far away, and of hostile ones.

A real Synapse, with remote servers and a DNS server of the benchmark's own on the
loopback interface. Needs root, for port 53 and a mount namespace. Prints two tables in
Markdown:

- how long the diagnosis of a healthy server takes, beside one cold request of Synapse's
  own federation client to the same server (a reconnect's contact), in round trips;
- what servers that hang or are hostile do: the time of the diagnosis beside its limit,
  the growth of the process in memory, and the worst of its `/health`.

    tox -e bench
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from probe import watch_of

from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from catalogue import CATALOGUE
from faults import m_server, up
from fleet import write_failing
from laboratory import WELL_KNOWN, ZONE, Laboratory, homeserver

TIMEOUT_S = 6
REPEATS = 7

HOSTILE = (
    *("dropped", "hangs-handshake", "all-hangs", "silent-dns", "hanging-file"),
    *("endless-body", "endless-headers", "endless-keys", "endless-file"),
    *("endless-redirects", "slow-version", "slow-send", "slow-file"),
    *("many-addresses", "blocked-by-delegation", "hostile-version", "deep-keys"),
)


def main() -> None:
    """Measure and print."""
    if os.geteuid() != 0:
        print("bench/diagnosis.py needs root: it is left out")
        return
    print("| server | round trip | one request | diagnosis | ratio | round trips |")
    print("|---|---|---|---|---|---|")
    for latency_ms in (0, 50, 100):
        healthy(latency_ms)
    print()
    print(f"| server | diagnosis (limit {TIMEOUT_S} s) | memory | `/health` worst |")
    print("|---|---|---|---|")
    hostile()


def start(laboratory: Laboratory, folder: Path) -> SynapseServer:
    """Describe a homeserver in the laboratory."""
    return SynapseServer(
        folder / "synapse",
        laboratory.certificates,
        module_config={"diagnosis": {"timeout": f"{TIMEOUT_S}s"}},
        extra_config={"federation_ip_range_blacklist": ["127.9.0.1/32"]},
        wrapper=laboratory.wrapper,
    )


def healthy(latency_ms: int) -> None:
    """Print what diagnoses of healthy servers take."""
    latency_s = latency_ms / 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Laboratory(folder) as laboratory:
            laboratory.dns.delay_s = latency_s
            near = f"near.{ZONE}"
            address = laboratory.address()
            laboratory.name("near", address)
            answers = homeserver(near)
            laboratory.serve(address, 8448, answers, near, latency_s=latency_s)
            far = f"far.{ZONE}"
            web = laboratory.address()
            laboratory.name("far", web)
            file = {WELL_KNOWN: m_server(f"matrix.{ZONE}:443")}
            laboratory.serve(web, 443, file, far, latency_s=latency_s)
            other = laboratory.address()
            laboratory.name("matrix", other)
            laboratory.serve(
                other, 443, homeserver(far), f"matrix.{ZONE}", latency_s=latency_s
            )
            with start(laboratory, folder) as synapse:
                client = synapse.client(synapse.create_user("admin", admin=True))
                write_failing(synapse, [near, far], failing_since_ts=1_000_000)
                for label, server in (("own name", near), ("delegated", far)):
                    print_healthy(client, label, server, latency_ms)


def print_healthy(client: MatrixClient, label: str, name: str, latency_ms: int) -> None:
    """Print one row."""
    contacts, diagnoses = [], []
    for _ in range(REPEATS):
        contacts.append(client.reconnect(name)["contact"]["duration_ms"])
        report = client.diagnose(name)
        assert report["verdict"] == "ok", report
        diagnoses.append(report["duration_ms"])
    contact, diagnosis = statistics.median(contacts), statistics.median(diagnoses)
    trips = f"{diagnosis / latency_ms:.1f}" if latency_ms else ""
    print(
        f"| {label} | {latency_ms} ms | {contact} ms | {diagnosis} ms "
        f"| {diagnosis / contact:.2f} | {trips} |",
        flush=True,
    )


def hostile() -> None:
    """Print what diagnoses of hostile servers take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Laboratory(folder) as laboratory:
            names = {}
            for fault in CATALOGUE:
                if fault.label in HOSTILE:
                    server = f"{fault.label}.{ZONE}"
                    names[fault.label] = fault.build(laboratory, server) or server
            healthy_name = f"warm.{ZONE}"
            up(laboratory, healthy_name)
            with start(laboratory, folder) as synapse:
                client = synapse.client(synapse.create_user("admin", admin=True))
                for _ in range(20):
                    client.diagnose(healthy_name)
                for label, server in names.items():
                    print_hostile(synapse, client, label, server)


def print_hostile(
    synapse: SynapseServer, client: MatrixClient, label: str, name: str
) -> None:
    """Print one row."""
    with watch_of(synapse) as watch:
        begun = time.monotonic()
        report = client.diagnose(name)
        took_s = time.monotonic() - begun
    print(
        f"| {label} | {took_s:.2f} s, {report['kind'] or report['verdict']} "
        f"| +{watch.growth_mib:.1f} MiB | {max(watch.health.samples):.0f} ms |",
        flush=True,
    )


if __name__ == "__main__":
    main()
