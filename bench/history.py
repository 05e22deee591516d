# SPDX-License-Identifier: Apache-2.0
"""Measure what it costs to keep why requests fail, and outages.

Real Synapse processes, on both databases. Writes its section of the page:

- what 10,000 real failures, 200 a second, do to a stock Synapse, to one with the
  module and to one with the module that takes no note of them, and what the module's
  own calls and transactions take of that;
- the job that keeps outages, with 1,000,000 destinations of which 100,000 fail.

    python bench/history.py
    python bench/history.py --database sqlite --rounds 1 --output /tmp/benchmarks.md
"""

import argparse
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from attrs import frozen
from copies import Copies, PostgresCopies, SqliteCopies, say
from probe import Health, PeakMemory
from report import HISTORY, replace_section

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.processes import wait_until
from synapse_federation_admin.playground.services import Postgres
from synapse_federation_admin.playground.synapse import SynapseServer

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from fleet import Fleet, select

Json = dict[str, Any]
Event = list[Any]

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_INSTRUMENTED = Path(__file__).resolve().parent / "instrumented.py"

# The load: how many of each sort, and how fast. One attempt each, as quick as can be.
FAILURES = 10_000
DROPPING = 2000
ANSWERING = 200
PER_SECOND = 200
AT_ONCE = 10
_IDLE_S = 8
_WARM_UP = 200
_FEDERATION = {
    "federation": {"max_long_retries": 0, "max_long_retry_delay": "1s"},
}

STOCK, OFF, MODULE, MEASURED = "stock", "no records", "module", "measured"

# The job: how many fail, and how many begin to and recover between two runs.
FAILING = 100_000
CHANGING = 2000
# One of five looks for what nobody has begun.
STEADY_RUNS = 5
_FIRST_MS = 20_000
_SUCCESSES = 300_000
_HOUR_MS = 3_600_000

# The transactions of the job, and of what keeps the metrics up to date.
_OF_OUTAGES = ("outages", "addresses")
_DESCS = (
    *(*_OF_OUTAGES, "outlook"),
    *("failing_by_kind", "summary", "summary_backlog"),
)


def main() -> None:
    """Measure, print and write."""
    options = _parse_options()
    databases = options.database or ["sqlite", "postgres"]
    parts = options.part or ["load", "job"]
    lines: list[str] = [_INTRODUCTION]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificates = CertificateAuthority(folder)
        if "load" in parts:
            loads = {
                _TITLES[name]: [
                    *rounds(folder, certificates, name == "postgres", options.rounds)
                ]
                for name in databases
            }
            lines += [_LOAD, *_load_table(loads), "", _COST, *_cost_table(loads), ""]
        if "job" in parts:
            kept = options.keep or folder / "kept"
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            jobs = {
                _TITLES[name]: job(kept, folder, certificates, name, options.rows)
                for name in databases
            }
            lines += [_JOB, *_job_table(jobs), ""]
            lines += [_TRANSACTIONS, *_transactions_table(jobs), ""]
    text = "\n".join(lines)
    print(text)
    options.output.write_text(
        replace_section(options.output, HISTORY, text), encoding="utf-8"
    )


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="destinations")
    parser.add_argument("--rounds", type=int, default=3, help="of the load")
    for name, choices in (("database", [*_TITLES]), ("part", ["load", "job"])):
        parser.add_argument(
            f"--{name}",
            action="append",
            choices=choices,
            help="may be repeated; by default both",
        )
    parser.add_argument("--output", type=Path, default=_PAGE, help="the page")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the filled databases in this folder, as bench/scale.py does",
    )
    return parser.parse_args()


_TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}


def _instrumented(file: Path, **options: object) -> list[str]:
    told = {"file": str(file), "has_module": True, **options}
    return [sys.executable, str(_INSTRUMENTED), json.dumps(told)]


def _events(file: Path, name: str) -> list[Event]:
    """Return all events of a name, of what was written so far."""
    if not file.exists():
        return []
    lines = file.read_text("utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event[0] == name]


# The load.


@frozen
class Load:
    """What came of one load."""

    setting: str
    idle_ms: float
    median_ms: float
    worst_ms: float
    cpu_s: float
    took_s: float
    transactions: int
    """How many the recorder has made."""
    written_s: float
    """What these have taken together."""
    kept: str
    """How many failures are in the table."""
    calls: dict[str, list[int]]
    """By what was called, the CPU time of each call, in ns, the least first."""


def rounds(
    folder: Path, certificates: CertificateAuthority, postgres: bool, count: int
) -> Iterator[Load]:
    """Put the load on each of the homeservers, one after the other, several times."""
    for number in range(count):
        for setting in (STOCK, OFF, MODULE):
            yield load(folder, certificates, setting, postgres, number)
    yield load(folder, certificates, MEASURED, postgres, 0)


def load(
    folder: Path,
    certificates: CertificateAuthority,
    setting: str,
    postgres: bool,
    number: int,
) -> Load:
    """Put the load on one homeserver, a fresh one."""
    name = f"{'pg' if postgres else 'sqlite'}-{setting.replace(' ', '-')}-{number}"
    say(f"load: {name}")
    told = folder / f"{name}.events"
    with (
        Fleet(
            certificates,
            up=ANSWERING,
            dropping=DROPPING + _WARM_UP // 2,
            refusing=FAILURES - DROPPING + _WARM_UP // 2,
        ) as fleet,
        SynapseServer(
            folder / name,
            certificates,
            postgres=postgres,
            module_config=None if setting == STOCK else {},
            extra_config=_FEDERATION,
            wrapper=_instrumented(
                told,
                has_module=setting != STOCK,
                records=setting != OFF,
                measures_calls=setting == MEASURED,
            ),
        ) as synapse,
    ):
        half = _WARM_UP // 2
        warm_up = fleet.refusing[:half] + fleet.dropping[:half]
        failing = fleet.refusing[half:] + fleet.dropping[half:]
        targets = [*failing, *fleet.up]
        random.Random(number).shuffle(targets)  # noqa: S311
        client = synapse.client(synapse.create_user("admin", admin=True))
        _send(client, warm_up)
        _wait_for_failures(synapse, len(warm_up))
        # What has been put off until a start is over is, too.
        time.sleep(5)
        process = psutil.Process(synapse.process("main").pid)
        health = Health(synapse.layout.client_ports["main"])
        idle = time.monotonic()
        time.sleep(_IDLE_S)
        cpu = process.cpu_times()
        begun = time.monotonic()
        _send(client, targets)
        _wait_for_failures(synapse, len(warm_up) + len(failing))
        ended = time.monotonic()
        # And the last batch.
        time.sleep(5)
        cpu_s = sum(process.cpu_times()[:2]) - sum(cpu[:2])
        over = time.monotonic()
        health.stop()
        kept = _kept(synapse, failing) if setting in (MODULE, MEASURED) else "-"
    written = [
        event
        for event in _events(told, "txn")
        if event[2] == "record" and begun <= event[1] <= over
    ]
    return Load(
        setting=setting,
        idle_ms=health.worst_ms(idle, begun - 0.001),
        median_ms=statistics.median(health.between(begun, over)),
        worst_ms=health.worst_ms(begun, over),
        cpu_s=cpu_s,
        took_s=ended - begun,
        transactions=len(written),
        written_s=sum(event[3] for event in written),
        kept=kept,
        calls={
            name: sorted(took_ns for ts, took_ns in costs if begun <= ts <= over)
            for _, _, name, costs in _events(told, "calls")
        },
    )


def _send(client: MatrixClient, names: Sequence[str]) -> None:
    """Send one to-device message to each, at an even pace."""
    begun = time.monotonic()
    for begin in range(0, len(names), AT_ONCE):
        late_s = time.monotonic() - begun - begin / PER_SECOND
        time.sleep(max(0.0, -late_s))
        some = names[begin : begin + AT_ONCE]
        client.request(
            "PUT",
            f"/_matrix/client/v3/sendToDevice/org.example.bench/{time.monotonic()}",
            json={"messages": {f"@x:{name}": {"*": {"body": "x"}} for name in some}},
        )


def _wait_for_failures(synapse: SynapseServer, count: int) -> None:
    def all_failing() -> bool:
        statement = "SELECT COUNT(*) FROM destinations WHERE retry_last_ts > 0"
        return int(select(synapse, statement)[0][0]) >= count

    wait_until(all_failing, f"{count} failing destinations", 300, 1)


def _kept(synapse: SynapseServer, failing: Sequence[str]) -> str:
    rows = {
        destination: int(count)
        for destination, count in select(
            synapse,
            "SELECT destination, SUM(count) FROM federation_admin_failures "
            "GROUP BY destination",
        )
    }
    once = sum(rows.get(name) == 1 for name in failing)
    return f"{once:,} of {len(failing):,}"


def _load_table(loads: dict[str, list[Load]]) -> list[str]:
    lines = [
        "| | `/health` idle, worst | median | worst | CPU | x stock | took "
        "| recorded, once each | transactions |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for title, all_ in loads.items():
        for setting in (STOCK, OFF, MODULE):
            some = [one for one in all_ if one.setting == setting]
            stock = [one for one in all_ if one.setting == STOCK]
            ratio = statistics.median(
                a.cpu_s / b.cpu_s for a, b in zip(some, stock, strict=True)
            )
            lines.append(
                f"| {title}, {setting} "
                f"| {_middle(one.idle_ms for one in some):.0f} ms "
                f"| {_middle(one.median_ms for one in some):.1f} ms "
                f"| {_spread([one.worst_ms for one in some], 0)} ms "
                f"| {_spread([one.cpu_s for one in some], 1)} s | {ratio:.3f} "
                f"| {_middle(one.took_s for one in some):.0f} s "
                f"| {', '.join(sorted({one.kept for one in some}))} "
                f"| {_middle(one.transactions for one in some):.0f} |"
            )
    return lines


def _cost_table(loads: dict[str, list[Load]]) -> list[str]:
    lines = [
        "| | what | how often | CPU each, median | worst | CPU, all | share |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for title, all_ in loads.items():
        (measured,) = [one for one in all_ if one.setting == MEASURED]
        total_ns = 0
        for name, words in _COSTS.items():
            costs = measured.calls.get(name)
            if not costs:
                continue
            sum_ns = sum(costs)
            total_ns += sum_ns
            lines.append(
                f"| {title} | {words} | {len(costs):,} "
                f"| {costs[len(costs) // 2] / 1000:,.1f} µs "
                f"| {costs[-1] / 1e6:.2f} ms | {sum_ns / 1e6:,.0f} ms "
                f"| {sum_ns / measured.cpu_s / 1e7:.2f} % |"
            )
        lines.append(
            f"| {title} | together | | | | {total_ns / 1e6:,.0f} ms "
            f"| {total_ns / measured.cpu_s / 1e7:.2f} % |"
        )
    return lines


_COSTS = {
    "failed": "a failure, reactor",
    "answered": "an answer, reactor",
    "recovered": "a recovery, reactor",
    "anything else": "another line of these loggers, reactor",
    "write": "the transaction, database thread",
}


def _middle(values: Iterable[float]) -> float:
    return statistics.median(values)


def _spread(values: Sequence[float], digits: int) -> str:
    low, high = (f"{end(values):.{digits}f}" for end in (min, max))
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if low == high else f"{middle} ({low} to {high})"


# The job.


@frozen
class Phase:
    """What was measured from a moment to another."""

    name: str
    idle_ms: float
    health_ms: float
    idle_late_ms: float
    late_ms: float
    growth_mib: float
    transactions: dict[str, list[Event]]
    """By what they are for, their events."""
    runs: dict[str, int]
    """By what they are for, how often that was done."""


def job(
    kept: Path,
    folder: Path,
    certificates: CertificateAuthority,
    database: str,
    rows: int,
) -> list[Phase]:
    """Let the job run for the first time, and then a few times more."""
    with ExitStack() as stack:
        copies: Copies
        if database == "sqlite":
            copies = SqliteCopies(kept, folder, certificates)
        else:
            server = stack.enter_context(Postgres(kept / "postgres"))
            copies = PostgresCopies(kept, folder, certificates, server)
        copies.build(rows)
        told = folder / f"job-{database}.events"
        stack.callback(copies.drop, "history")
        synapse = copies.server(
            "history",
            {},
            wrapper=_instrumented(told, first_ms=_FIRST_MS, measures_lag=True),
        )
        rest = _Rest(copies, "history", rows)
        rest.have_fail(rest.healthy(rest.missing()))
        say(f"{copies.title}: starting, {FAILING:,} fail")
        stack.enter_context(synapse)
        synapse.create_user("admin", admin=True)
        pid, port = synapse.process("main").pid, synapse.layout.client_ports["main"]
        first = _phase("first run", told, pid, port, 1, lambda: None)
        rest.record_all()
        # The next run sees these for the first time: it is none of those measured.
        _wait_for_run(told, 2)
        steady = _phase("steady", told, pid, port, STEADY_RUNS, rest.change)
        say(f"{copies.title}: {rest.counted()}")
        return [first, steady]


def _phase(name: str, told: Path, pid: int, port: int, runs: int, change: Any) -> Phase:
    done = len(_events(told, "outages ends"))
    health = Health(port)
    idle = time.monotonic()
    with PeakMemory(pid) as memory:
        time.sleep(_IDLE_S)
        busy = 0.0
        for number in range(runs):
            change()
            _wait_for_run(told, done + number + 1)
        ended = time.monotonic()
    health.stop()
    spans: dict[str, list[tuple[float, float]]] = {}
    for what in ("outages", "monitor"):
        begins, ends = (
            [e[1] for e in _events(told, f"{what} {end}") if idle <= e[1] <= ended]
            for end in ("begins", "ends")
        )
        spans[what] = list(zip(begins, ends, strict=False))
    all_spans = [*spans["outages"], *spans["monitor"]]
    busy = min(begin for begin, _ in all_spans)
    late = [event for event in _events(told, "late") if idle <= event[1] <= ended]

    def late_ms(since: float, until: float) -> float:
        return max((e[2] * 1000 for e in late if since <= e[1] <= until), default=0.0)

    transactions: dict[str, list[Event]] = {}
    for event in _events(told, "txn"):
        if event[2] in _DESCS and idle <= event[1] <= ended:
            transactions.setdefault(event[2], []).append(event)
    return Phase(
        name=name,
        idle_ms=health.worst_ms(idle, min(busy, idle + _IDLE_S) - 0.01),
        health_ms=max(health.worst_ms(*span) for span in all_spans),
        idle_late_ms=late_ms(idle, min(busy, idle + _IDLE_S) - 0.01),
        late_ms=max(late_ms(*span) for span in all_spans),
        growth_mib=memory.growth_mib,
        transactions=transactions,
        runs={
            desc: len(spans["outages" if desc in _OF_OUTAGES else "monitor"])
            for desc in transactions
        },
    )


def _wait_for_run(told: Path, count: int) -> None:
    """Wait until the job has ended so many times, and the metrics' update once."""
    wait_until(
        lambda: (
            len(_events(told, "outages ends")) >= count
            and _events(told, "monitor ends")
        ),
        f"run {count}",
        300,
        0.2,
    )


class _Rest:
    """Does to a copy what federation traffic would have done."""

    def __init__(self, copies: Copies, name: str, rows: int) -> None:
        self._copies = copies
        self._name = name
        self._dice = random.Random(rows)  # noqa: S311
        self._wanted = min(FAILING, rows // 10)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        if isinstance(self._copies, SqliteCopies):
            path = self._copies.folder / f"sqlite-{self._name}" / "homeserver.db"
            with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
                yield connection.cursor()
            return
        assert isinstance(self._copies, PostgresCopies)
        place = self._copies._database(self._name)
        with (
            closing(
                psycopg2.connect(host=place.host, user=place.user, dbname=place.name)
            ) as connection,
            connection,
        ):
            yield connection.cursor()

    def _run(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        with self._connected() as cursor:
            mark = "?" if isinstance(self._copies, SqliteCopies) else "%s"
            cursor.executemany(statement.replace("?", mark), list(rows))

    def _names(self, where: str, count: int) -> list[str]:
        with self._connected() as cursor:
            cursor.execute(
                f"SELECT destination FROM destinations WHERE {where} "  # noqa: S608
                "ORDER BY destination"
            )
            return self._dice.sample([name for (name,) in cursor.fetchall()], count)

    def missing(self) -> int:
        """Return how many do not fail yet that are to."""
        with self._connected() as cursor:
            cursor.execute("SELECT COUNT(*) FROM destinations WHERE retry_last_ts > 0")
            return max(0, self._wanted - int(cursor.fetchone()[0]))

    def healthy(self, count: int) -> list[str]:
        """Return some that do not fail."""
        return self._names("COALESCE(retry_last_ts, 0) = 0", count)

    def have_fail(self, names: Sequence[str]) -> None:
        """Let requests to some destinations fail."""
        now_ms = int(time.time() * 1000)
        self._run(
            "UPDATE destinations SET retry_last_ts = ?, retry_interval = 600000, "
            "failure_ts = ? WHERE destination = ?",
            ((now_ms, now_ms - 5, name) for name in names),
        )

    def record_all(self) -> None:
        """Write of all that fail why, and of many others that they work."""
        now_ms = int(time.time() * 1000)
        kinds = list(FailureKind)[:6]
        names = self._names("retry_last_ts > 0", self._wanted)
        whys = [
            (
                *(name, self._dice.choice(kinds).value, "Connection refused by host"),
                now_ms - 90 * 24 * _HOUR_MS,
                now_ms - self._dice.randrange(24 * _HOUR_MS),
            )
            for name in names
        ]
        self._run(
            "INSERT INTO federation_admin_failures (destination, kind, message, "
            "first_ts, last_ts, count, instance, issuer) "
            "VALUES (?, ?, ?, ?, ?, 7, 'main', '')",
            whys,
        )
        self._run(
            "UPDATE federation_admin_outages SET last_kind = ? WHERE destination = ?",
            ((kind, name) for name, kind, *_ in whys),
        )
        self._run(
            "INSERT INTO federation_admin_successes (destination, last_ts) "
            "VALUES (?, ?)",
            (
                (name, now_ms - self._dice.randrange(7 * 24 * _HOUR_MS))
                for name in self.healthy(3 * self._wanted)
            ),
        )
        if isinstance(self._copies, PostgresCopies):
            # What autovacuum does.
            with self._connected() as cursor:
                cursor.execute("ANALYZE")

    def change(self) -> None:
        """Let some destinations recover, and as many others begin to fail."""
        now_ms = int(time.time() * 1000)
        recovered = self._names("retry_last_ts > 0", CHANGING)
        self.have_fail(self.healthy(CHANGING))
        self._run(
            "UPDATE destinations SET retry_last_ts = 0, retry_interval = 0, "
            "failure_ts = NULL WHERE destination = ?",
            ((name,) for name in recovered),
        )
        self._run(
            "INSERT INTO federation_admin_successes "
            "(destination, last_ts, recovered_ts) VALUES (?, ?, ?) "
            "ON CONFLICT (destination) DO UPDATE SET "
            "last_ts = EXCLUDED.last_ts, recovered_ts = EXCLUDED.recovered_ts",
            ((name, now_ms, now_ms) for name in recovered),
        )

    def counted(self) -> dict[str, int]:
        """Return how many outages last, and how many have ended how."""
        with self._connected() as cursor:
            cursor.execute(
                "SELECT COALESCE(ended, 'open'), COUNT(*) "
                "FROM federation_admin_outages GROUP BY 1"
            )
            return {str(how): int(count) for how, count in cursor.fetchall()}


def _job_table(jobs: dict[str, list[Phase]]) -> list[str]:
    lines = [
        "| | `/health` idle, worst | meanwhile, worst | reactor idle, latest "
        "| meanwhile, latest | memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for title, phases in jobs.items():
        lines += [
            f"| {title}, {phase.name} | {phase.idle_ms:.0f} ms "
            f"| {phase.health_ms:.0f} ms | {phase.idle_late_ms:.0f} ms "
            f"| {phase.late_ms:.0f} ms | +{phase.growth_mib:.1f} MiB |"
            for phase in phases
        ]
    return lines


def _transactions_table(jobs: dict[str, list[Phase]]) -> list[str]:
    lines = [
        "| | `desc` | transactions a run | time a run | CPU here | longest |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for title, phases in jobs.items():
        for phase in phases:
            for desc in _DESCS:
                events = phase.transactions.get(desc, [])
                runs = phase.runs.get(desc, 0)
                if not runs:
                    continue
                took_s = [event[3] for event in events]
                lines.append(
                    f"| {title}, {phase.name} | {desc} | {len(events) / runs:.0f} "
                    f"| {sum(took_s) / runs * 1000:,.0f} ms "
                    f"| {sum(event[4] for event in events) / runs * 1000:,.0f} ms "
                    f"| {max(took_s) * 1000:,.0f} ms |"
                )
    return lines


_INTRODUCTION = """\
What it costs to keep why real requests fail, and outages: real Synapse processes, on
the same machine. This section is written by `python bench/history.py`, which
`tox -e bench` runs.
"""

_LOAD = f"""\
### {FAILURES:,} failures, {PER_SECOND} a second

One process, with real sockets: {FAILURES:,} destinations, each with an address of its
own, are sent a to-device message, at that pace. {FAILURES - DROPPING:,} of
them refuse the connection and {DROPPING:,} drop it; {ANSWERING} others answer. Each
homeserver is a fresh one, has met {_WARM_UP} failures before, and gets the same
messages in the same order, one homeserver after the other.

- *No records* is the module with all of this switched off, which only the benchmark can
  do.
- *CPU* is that of the whole process, from the first message until the last failure is
  written. "x stock" is the median of the ratios of each round.
- *Recorded, once each* counts the destinations that are in the table with one failure.
- Figures with a range are the median, the least and the greatest of the rounds.
"""

_COST = """\
What of that is the module's own, measured at each call, as CPU time of the thread that
made it, in another process under the same load. The share is that of the process's CPU.
A line of these loggers that says nothing of a request is looked at, too.
"""

_JOB = f"""\
### The job that keeps outages

One process on a database with 1,000,000 destinations, of which {FAILING:,} fail. The
*first run* begins the outages of all of them. Then their failures are recorded, and
some {3 * FAILING:,} others have answered within a week. *Steady* is {STEADY_RUNS} runs
later, once a minute; before each, {CHANGING:,} destinations have recovered and
{CHANGING:,} others, of which nothing is recorded yet, have begun to fail.

- *Idle* is before the first of these runs, *meanwhile* is during the runs of the job
  and of what brings the metrics up to date.
- *Reactor* is how late a call of the process's reactor was that is due every 2 ms. The
  process and the poller of `/health` have the priority of nice -10.
- *Memory* is how far the peak of the process's resident memory rises.
"""

_TRANSACTIONS = """\
The transactions, by their `desc` in `synapse_federation_admin_db_txn_duration_seconds`:
`outages` and `addresses` are the job's, the others are of what brings the metrics up to
date. *Time* is what that metric counts; *CPU here* is what of it the process itself was
at work: with SQLite all of it, with PostgreSQL it waits.
"""


if __name__ == "__main__":
    main()
