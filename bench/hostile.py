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

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from attrs import field, frozen, mutable
from probe import Health

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from dns_server import silent, with_resolver
from fleet import write_failing

FAILING_SINCE_TS = 1_600_000_000_000
SAMPLED_EVERY_S = 0.1
SILENT_ADDRESS = "127.77.0.53"

DESTINATIONS = 20_000
WATCHED_S = 90


@mutable
class Watch:
    """What a process takes while the context is open, and how soon it answers."""

    synapse: SynapseServer
    descriptors: int = 0
    threads: int = 0
    memory_mib: float = 0
    health: tuple[float, ...] = ()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample the main process."""
        process = psutil.Process(self.synapse.process("main").pid)
        before = process.memory_info().rss
        over = threading.Event()

        def sample() -> None:
            while not over.wait(SAMPLED_EVERY_S):
                grown = (process.memory_info().rss - before) / 2**20
                self.memory_mib = max(self.memory_mib, grown)
                self.descriptors = max(self.descriptors, process.num_fds())
                self.threads = max(self.threads, process.num_threads())

        sampler = threading.Thread(target=sample)
        sampler.start()
        health = Health(self.synapse.layout.client_ports["main"])
        try:
            yield
        finally:
            health.stop()
            over.set()
            sampler.join()
            self.health = tuple(health.samples)


@frozen
class Scenario:
    """What is done to a homeserver, and what it may cost at most."""

    run: Callable[[Watch], str]
    """Does it, while it is watched; returns in a few words how far it came."""
    most_descriptors: int
    most_mib: float
    most_health_ms: float
    config: dict[str, Any] = field(factory=dict)
    """Of the module."""


def silent_dns(watch: Watch) -> str:
    """Reconnect all of many while no name server answers."""
    names = [f"host{number:05}.example" for number in range(DESTINATIONS)]
    write_failing(watch.synapse, names, failing_since_ts=FAILING_SINCE_TS)
    client = watch.synapse.client(watch.synapse.create_user("admin", admin=True))
    with watch.watching():
        run_id = client.start_run(all_failing=True, per_second=500, timeout_ms=1000)
        ends_s = time.monotonic() + WATCHED_S
        while time.monotonic() < ends_s:
            time.sleep(0.5)
            run = client.run(run_id["id"])
            if run["ended_ts"]:
                break
    counts = ", ".join(f"{kind} {e['count']}" for kind, e in run["errors"].items())
    return f"{run['done']} of {run['matched']} done ({counts or 'no errors'})"


SCENARIOS = {"silent-dns": Scenario(silent_dns, 600, 32, 100)}


def main() -> None:
    """Measure and print."""
    names = sys.argv[1:] or list(SCENARIOS)
    print("| | descriptors | threads | memory | `/health` worst, median | |")
    print("|---|---|---|---|---|---|")
    for name in names:
        scenario = SCENARIOS[name]
        with surroundings(scenario) as watch:
            came = scenario.run(watch)
        worst_ms = max(watch.health)
        print(
            f"| {name} | {against(watch.descriptors, scenario.most_descriptors)} "
            f"| {watch.threads} | +{against(watch.memory_mib, scenario.most_mib)} MiB "
            f"| {against(worst_ms, scenario.most_health_ms)} ms, "
            f"{statistics.median(watch.health):.1f} ms | {came} |",
            flush=True,
        )


def against(found: float, most: float) -> str:
    """Return a figure, marked if it is over its aim."""
    return f"{found:.0f}{'!' if found > most else ''}"


@contextmanager
def surroundings(scenario: Scenario) -> Iterator[Watch]:
    """Start a homeserver whose resolver takes every query and answers none."""
    with tempfile.TemporaryDirectory() as name, silent(SILENT_ADDRESS):
        folder = Path(name)
        with SynapseServer(
            folder / "synapse",
            CertificateAuthority(folder),
            module_config=scenario.config,
            wrapper=with_resolver(folder, SILENT_ADDRESS),
        ) as synapse:
            yield Watch(synapse)


if __name__ == "__main__":
    main()
