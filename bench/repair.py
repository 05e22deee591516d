# SPDX-License-Identifier: Apache-2.0
"""Measure repair: one reconnect, and a bulk run over ten thousand destinations.

Real processes and remote servers on the loopback interface. Prints two tables in
Markdown:

- how long the answer to a reconnect of a healthy server takes, beside what the contact
  itself took (`contact.duration_ms`);
- a run over 10,000 failing destinations of which 100 are up, paced at 500 per second:
  its time beside what the pace dictates, what it reached, the worst and the median of
  `/health` of the process that runs it, its growth in memory, and its CPU time.

    tox -e bench
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from probe import watch_of

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from fleet import Fleet, read_rows, write_failing

DESTINATIONS = 10_000
UP = 100
PER_SECOND = 500
RECONNECTS = 30
WAITING = "waiting"
FAILING_SINCE_TS = 1_600_000_000_000

LAYOUTS: dict[str, dict[str, bool]] = {
    "one process, SQLite": {},
    "one process, PostgreSQL": {"postgres": True},
    "workers, PostgreSQL": {"workers": True},
}


@frozen
class Setting:
    """A homeserver, and remote servers that it believes to be failing."""

    synapse: SynapseServer
    client: MatrixClient
    fleet: Fleet


def main() -> None:
    """Measure and print."""
    print("| | remote's delay | contact, median | answer, median | answer, worst |")
    print("|---|---|---|---|---|")
    for name, layout in LAYOUTS.items():
        for delay_ms in (0, 100):
            print(f"| {name} | {delay_ms} ms | {reconnects(layout, delay_ms)} |")
    print()
    print(
        "| | run | by the pace | connected | arrived | untouched "
        "| `/health` worst, median | memory | CPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, layout in LAYOUTS.items():
        print(f"| {name} | {bulk(layout)} |", flush=True)


@contextmanager
def setting(layout: dict[str, Any], **fleet: Any) -> Iterator[Setting]:
    """Start a homeserver and remote servers; a message waits for each that is up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates = CertificateAuthority(folder)
        with (
            Fleet(certificates, **fleet) as servers,
            SynapseServer(folder / "synapse", certificates, **layout) as synapse,
        ):
            write_failing(synapse, servers.names, failing_since_ts=FAILING_SINCE_TS)
            client = synapse.client(synapse.create_user("admin", admin=True))
            for remote in servers.up:
                client.send_to_device(f"@x:{remote}", WAITING)
            yield Setting(synapse, client, servers)


def reconnects(layout: dict[str, Any], delay_ms: int) -> str:
    """Reconnect healthy servers, one after the other."""
    with setting(layout, up=RECONNECTS, delay_s=delay_ms / 1000) as on:
        contacts, answers = [], []
        for name in on.fleet.up:
            begun = time.monotonic()
            answer = on.client.reconnect(name)
            answers.append((time.monotonic() - begun) * 1000)
            contacts.append(answer["contact"]["duration_ms"])
            assert answer["outcome"] == "connected", answer
    return (
        f"{statistics.median(contacts):.0f} ms | {statistics.median(answers):.0f} ms "
        f"| {max(answers):.0f} ms"
    )


def bulk(layout: dict[str, Any]) -> str:
    """Run over all of them."""
    with setting(layout, up=UP, refusing=DESTINATIONS - UP) as on:
        before = read_rows(on.synapse)
        with watch_of(on.synapse) as watch:
            run_id = on.client.start_run(all_failing=True, per_second=PER_SECOND)["id"]
            wait_until(lambda: on.client.run(run_id)["ended_ts"], "the run", 300, 0.5)
        run = on.client.run(run_id)
        time.sleep(1)
        after = read_rows(on.synapse)
        untouched = sum(after[name] == before[name] for name in on.fleet.refusing)
        samples = watch.health.samples
        return (
            f"{(run['ended_ts'] - run['started_ts']) / 1000:.1f} s "
            f"| {DESTINATIONS / PER_SECOND:.1f} s | {run['outcomes']['connected']} "
            f"| {len(on.fleet.received(WAITING))} | {untouched} "
            f"| {max(samples):.0f} ms, {statistics.median(samples):.1f} ms "
            f"| +{watch.growth_mib:.0f} MiB | {watch.cpu_s:.0f} s"
        )


if __name__ == "__main__":
    main()
