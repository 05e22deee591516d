# SPDX-License-Identifier: Apache-2.0
"""Measure what the module costs a homeserver that has nothing to do.

Stock and module run side by side. Writes its section of the page:

- how many database transactions each makes in a minute, on one process with either
  database and on workers, and which of them are the module's;
- with 1,000,000 destinations, of which 400,000 fail: the CPU time of the first minute
  and of those after it, and the size of the database.

    python bench/idle.py
    python bench/idle.py --minutes 2 --output /tmp/idle.md

The first takes half an hour, the second eleven minutes.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from attrs import frozen
from copies import say
from probe import Health
from report import IDLE, section_options, write_section

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.services import Database
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from fleet import select

# How long after its start a homeserver is idle, and nothing is put off any more.
_SETTLED_S = 75
_MINUTE_S = 60
_SCRAPE_EVERY_S = 15
_HEALTH_PAUSE_S = 0.25

_OURS = "federation_admin_"
_IN_POSTGRES = "pg_stat_database"
CONFIGS: dict[str, dict[str, Any] | None] = {"stock": None, "module": {}}
_KINDS: dict[str, dict[str, Any]] = {
    "SQLite": {},
    "PostgreSQL": {"postgres": True},
    "PostgreSQL, 4 processes": {"workers": True},
}
_TRANSACTIONS = re.compile(
    r'^synapse_storage_transaction_time_count_total\{.*?desc="(\w+)".*?\} (\S+)', re.M
)

# Names of 21 letters; of ten, four fail, since up to 100 days.
_FILL = """
INSERT INTO destinations
SELECT 'server' || (1000000 + n) || '.example',
    CASE WHEN n % 10 < 4 THEN {now_ms} - n END,
    CASE WHEN n % 10 < 4 THEN 604800000 END,
    CASE WHEN n % 10 < 4 THEN {now_ms} - n * CAST(8640 AS bigint) END,
    CASE WHEN n % 10 >= 4 THEN n END
FROM (
    WITH RECURSIVE numbers (n) AS (
        SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows}
    )
    SELECT n FROM numbers
) AS numbers
"""


@frozen
class Homeserver:
    """A homeserver, as far as it is measured."""

    name: str
    synapse: SynapseServer

    def transactions(self) -> "Counter[str]":
        """Return how many transactions all its processes have made, by what for."""
        found: Counter[str] = Counter()
        for process in self.synapse.processes:
            url = f"{self.synapse.url(process)}/_synapse/metrics"
            text = httpx.get(url, trust_env=False).raise_for_status().text
            for desc, count in _TRANSACTIONS.findall(text):
                found[desc] += int(float(count))
        if self.synapse.postgres is not None:
            # Of which there are some that Synapse's metrics have not.
            found[_IN_POSTGRES] = int(self._ask_postgres("xact_commit + xact_rollback"))
        return found

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes, and of its PostgreSQL."""
        pids = [self.synapse.process(name).pid for name in self.synapse.processes]
        if self.synapse.postgres is not None:
            file = self.synapse.folder / "postgres" / "data" / "postmaster.pid"
            pids.append(int(file.read_text().split()[0]))
        total = 0.0
        for process in map(psutil.Process, pids):
            # With that of its children, also of those that have ended.
            total += sum(process.cpu_times()[:4])
            total += sum(sum(child.cpu_times()[:2]) for child in process.children())
        return total

    def size_mib(self) -> float:
        """Return the size of the database."""
        if self.synapse.postgres is not None:
            return int(self._ask_postgres("pg_database_size(datname)")) / 2**20
        files = self.synapse.folder.glob("homeserver.db*")
        return sum(file.stat().st_size for file in files) / 2**20

    def _ask_postgres(self, what: str) -> str:
        assert self.synapse.postgres is not None
        assert self.synapse.database is not None
        # From another database, whose transactions do not count.
        return self.synapse.postgres.execute(
            Database(self.synapse.database.host, "postgres", "postgres"),
            f"SELECT {what} FROM pg_stat_database "  # noqa: S608
            f"WHERE datname = '{self.synapse.database.name}'",
        )


def main() -> None:
    """Measure, print and write."""
    options = section_options(
        __doc__, rows=(1_000_000, "destinations"), minutes=(10, "for each figure")
    ).parse_args()
    lines = [_TRANSACTIONS_TITLE]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates = CertificateAuthority(folder)
        # All at once: it is counted what they do, and not how long it takes.
        with ExitStack() as stack:
            counted = {
                title: stack.enter_context(_both(folder / "idle", certificates, title))
                for title in _KINDS
            }
            lines += _count(counted, options.minutes)
        lines += ["", _MILLION.format(rows=options.rows)]
        for title, kind in _KINDS.items():
            if not kind.get("workers"):
                with _both(folder / "filled", certificates, title) as both:
                    lines += _watch(title, both, options.rows, options.minutes)
    write_section(options.output, IDLE, lines)


@contextmanager
def _both(
    folder: Path, certificates: CertificateAuthority, title: str
) -> Iterator[list[Homeserver]]:
    """Run a stock homeserver and one with the module."""
    say(f"{folder.name}: {title}")
    # PostgreSQL takes no space in the path of its socket.
    folder /= title.replace(", ", "-").replace(" ", "-")
    with ExitStack() as stack:
        yield [
            Homeserver(
                name,
                stack.enter_context(
                    SynapseServer(
                        folder / name,
                        certificates,
                        module_config=config,
                        extra_config={"enable_metrics": True},
                        **_KINDS[title],
                    )
                ),
            )
            for name, config in CONFIGS.items()
        ]


def _count(counted: dict[str, list[Homeserver]], minutes: int) -> list[str]:
    everyone = [one for both in counted.values() for one in both]
    time.sleep(_SETTLED_S)
    before = [one.transactions() for one in everyone]
    _idle(everyone, minutes)
    made = iter(
        one.transactions() - counted
        for one, counted in zip(everyone, before, strict=True)
    )
    return [
        line
        for title in counted
        for line in _rows(title, next(made), next(made), minutes)
    ]


def _rows(
    title: str, stock: "Counter[str]", module: "Counter[str]", minutes: int
) -> list[str]:
    ours = ", ".join(
        f"{desc.removeprefix(_OURS)} {count / minutes:.1f}"
        for desc, count in module.most_common()
        if desc.startswith(_OURS)
    )
    lines = []
    for what, descs in (
        ("Synapse's metrics", [d for d in {*stock, *module} if d != _IN_POSTGRES]),
        ("`pg_stat_database`", [_IN_POSTGRES]),
    ):
        with_, without = (sum(c[d] for d in descs) / minutes for c in (module, stock))
        if without:
            lines.append(
                f"| {title}, {what} | {without:.1f} | {with_:.1f} "
                f"| {with_ - without:+.1f} | {ours} |"
            )
            ours = ""
    return lines


def _idle(homeservers: list[Homeserver], minutes: int) -> None:
    """Do nothing but to read metrics, as Prometheus does; for so long to the second.

    Reading those of all takes seconds where the machine is busy.
    """
    begun = time.monotonic()
    for number in range(minutes * _MINUTE_S // _SCRAPE_EVERY_S):
        for one in homeservers:
            one.transactions()
        next_s = begun + (number + 1) * _SCRAPE_EVERY_S
        time.sleep(max(0.0, next_s - time.monotonic()))


def _watch(
    title: str, homeservers: list[Homeserver], rows: int, minutes: int
) -> list[str]:
    """Fill the databases, start both at once, and look at them while they idle."""
    statement = _FILL.format(rows=rows, now_ms=int(time.time() * 1000))
    for one in homeservers:
        one.synapse.stop()
        select(one.synapse, statement)
        one.synapse.start()
    ports = [one.synapse.layout.client_ports["main"] for one in homeservers]
    healths = [Health(port, _HEALTH_PAUSE_S) for port in ports]
    began = [one.cpu_s() for one in homeservers]
    _idle(homeservers, 1)
    first = [one.cpu_s() for one in homeservers]
    _idle(homeservers, minutes)
    after = [one.cpu_s() for one in homeservers]
    for health in healths:
        health.stop()
    percent = 100 / _MINUTE_S
    return [
        f"| {title}, {one.name} | {(first[n] - began[n]) * percent:.1f} % "
        f"| {(after[n] - first[n]) * percent / minutes:.1f} % "
        f"| {max(healths[n].samples):.0f} ms | {one.size_mib():.0f} MiB |"
        for n, one in enumerate(homeservers)
    ]


_TRANSACTIONS_TITLE = """\
Database transactions a minute of a homeserver that nobody uses but Prometheus, and of
those the module's, by what they are for. What PostgreSQL counts has those of
autovacuum.

| | stock | module | more | the module's |
|---|---:|---:|---:|---|"""

_MILLION = """\
{rows:,} destinations, of which four of ten fail: CPU time of Synapse and its
PostgreSQL in the minute after the start, and in those after it.

| | first minute | then | worst `/health` | database |
|---|---:|---:|---:|---:|"""

if __name__ == "__main__":
    main()
