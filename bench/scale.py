# SPDX-License-Identifier: Apache-2.0
"""Measure lists of destinations: stock Synapse and the module side by side.

    python bench/scale.py
    python bench/scale.py --rows 20000 --database sqlite --output /tmp/benchmarks.md
    python bench/scale.py --beside ../before --output /tmp/benchmarks.md

1,000,000 destinations on PostgreSQL, 100,000 on SQLite: that is what is promised.

Builds a database, copies it for each server, sends the same requests to each of them in
turn, and writes tables in Markdown. Exits with 1 if a request was not answered or was
answered differently by the servers; the page then says which.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import probe
import report
from copies import Copies, PostgresCopies, SqliteCopies, say
from plan import (
    SUMMARY,
    V1,
    V2,
    Case,
    NotAnsweredError,
    Server,
    Turn,
    crowd,
    turns,
    v1_cases,
    v2_cases,
    walk_all,
)
from report import (
    BEFORE,
    BEFORE_INDEXED,
    INDEXED,
    MODULE,
    STOCK,
    DatabaseReport,
    Greedy,
)

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.processes import PlaygroundError, wait_until
from synapse_federation_admin.playground.services import Postgres
from synapse_federation_admin.playground.synapse import SynapseServer

Json = dict[str, Any]

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_CONFIGS: dict[str, Json | None] = {STOCK: None, MODULE: {}, INDEXED: {"indexes": True}}
_BEFORE = {BEFORE: MODULE, BEFORE_INDEXED: INDEXED}
_ROWS = {"sqlite": 100_000, "postgres": 1_000_000}
_GREEDY_REPETITIONS = 3
_CROWD = 200
_FIRST_IDLE_S = 5.0

_remarks: list[str] = []


def main() -> int:
    """Measure, print and write."""
    options = _parse_options()
    started = time.monotonic()
    databases = options.database or ["sqlite", "postgres"]
    reports = []
    postgres_version = None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept: Path = options.keep or folder / "kept"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificates = CertificateAuthority(folder)
        for name in databases:
            with ExitStack() as inner:
                copies: Copies
                if name == "sqlite":
                    copies = SqliteCopies(kept, folder, certificates)
                else:
                    server = inner.enter_context(Postgres(kept / "postgres"))
                    copies = PostgresCopies(kept, folder, certificates, server)
                    postgres_version = copies.version
                rows = options.rows or _ROWS[name]
                copies.build(rows)
                began = time.monotonic()
                reports.append(_measure(inner, copies, rows, options))
                say(f"{copies.title}: {(time.monotonic() - began) / 60:.1f} minutes")
    text = report.write(
        reports,
        _remarks,
        repetitions=options.repetitions,
        machine=report.machine_and_versions(postgres_version),
    )
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    kept_sections = report.sections_from(options.output, report.IDLE)
    options.output.write_text(text + kept_sections, encoding="utf-8")
    say(f"All of it took {(time.monotonic() - started) / 60:.1f} minutes")
    return 1 if _remarks else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, help="destinations, on either database")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--database",
        action="append",
        choices=["sqlite", "postgres"],
        help="may be repeated; by default both",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=_PAGE,
        help="the page; default docs/benchmarks.md",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the filled databases in this folder, and use those that are there "
        "already, unless they are a day old: then they are filled anew. Servers "
        "always run on copies",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="DIR",
        help="another checkout of this project, whose module is measured side by side",
    )
    options = parser.parse_args()
    if (options.rows or 1000) < 1000 or options.repetitions < 1:
        parser.error("at least 1000 rows and 1 repetition are needed")
    return options


def _remark(text: str) -> None:
    say(text)
    _remarks.append(text)


# Servers.


def _measure(
    stack: ExitStack, copies: Copies, rows: int, options: argparse.Namespace
) -> DatabaseReport:
    servers = []
    made = [(name, config, None) for name, config in _CONFIGS.items()]
    if options.beside:
        checkout = options.beside.resolve()
        made += [(name, _CONFIGS[now], checkout) for name, now in _BEFORE.items()]
    for number, (name, config, checkout) in enumerate(made):
        say(f"{copies.title}: starting {name}")
        copy = f"copy{number}"
        stack.callback(copies.drop, copy)
        try:
            synapse = stack.enter_context(
                copies.server(copy, config, checkout=checkout)
            )
        except PlaygroundError as e:
            _remark(f"{copies.title}, {name}: did not start")
            say(str(e))
            continue
        user = synapse.create_user("admin", admin=True)
        servers.append(
            Server(
                name=name,
                port=synapse.layout.client_ports["main"],
                token=user.access_token,
                pid=synapse.process("main").pid,
                has_module=config is not None,
                restart=partial(_restart, synapse),
            )
        )
    title = f"{copies.title}, {rows:,} destinations"
    result = DatabaseReport(title, [server.name for server in servers])
    modules = [server for server in servers if server.has_module]
    for server in modules:
        _prepare(server, result, rows)
    for turn in turns(options.repetitions, rows):
        say(f"{copies.title}: repetition {turn.number + 1} of {options.repetitions}")
        for case in v1_cases():
            _take_turns(result, result.v1, case, servers, turn)
        for case in v2_cases():
            _take_turns(result, result.v2, case, modules, turn)
    _measure_greedy(result, servers, rows)
    _measure_crowds(result, servers, rows)
    return result


def _restart(synapse: SynapseServer) -> int:
    synapse.restart()
    return synapse.process("main").pid


def _prepare(server: Server, result: DatabaseReport, count: int) -> None:
    """Wait for the indexes, and walk through all of v2 once."""

    def ready() -> bool:
        _, summary = server.get(SUMMARY)
        return bool(summary["indexes"]["ready"])

    try:
        if server.name in (INDEXED, BEFORE_INDEXED):
            wait_until(ready, "the indexes", 600, 0.5)
        found = walk_all(server)
    except (NotAnsweredError, PlaygroundError, KeyError) as e:
        _remark(f"{result.title}, {server.name}: indexes, or walk through v2: {e!r}")
        return
    result.walks[server.name] = server.walk_s
    if found != count:
        _remark(f"{result.title}, {server.name}: a walk found {found:,} of {count:,}")


def _take_turns(
    result: DatabaseReport,
    table: dict[str, dict[str, report.Figures]],
    case: Case,
    servers: Sequence[Server],
    turn: Turn,
) -> None:
    answers = {}
    line = table.setdefault(case.name, {})
    for server in servers:
        figures = line.setdefault(server.name, [])
        if isinstance(figures, str):
            continue
        try:
            elapsed, answers[server.name] = case.ask(server, turn)
        except NotAnsweredError as e:
            line[server.name] = str(e)
            _remark(f"{result.title}, {server.name}, {case.name}: {e}")
            continue
        figures.append(elapsed)
    first = next(iter(answers.values()), None)
    if any(answer != first for answer in answers.values()):
        _remark(f"{result.title}, {case.name}: the servers' answers differ")


# Greed.


def _measure_greedy(
    result: DatabaseReport, servers: Sequence[Server], count: int
) -> None:
    whole = f"{V1}?limit={count}"
    export = f"{V2}/export?format="
    row = '"destination":'
    plain = [s for s in servers if s.name not in (INDEXED, BEFORE_INDEXED)]
    for server in plain:
        server.start_anew()
    tasks = [
        *((s, f"v1 `limit={count}`", whole, row, count) for s in plain),
        *(
            (s, f"v2 export, {kind}", export + kind, needle, expected)
            for s in plain
            if s.has_module
            # CSV has a line of headings.
            for kind, needle, expected in (
                ("ndjson", row, count),
                ("csv", "\n", count + 1),
            )
        ),
    ]
    runs: dict[int, list[tuple[float, float, float, float, str]]] = {}
    failed = set()
    for _ in range(_GREEDY_REPETITIONS):
        for number, (server, name, path, needle, expected) in enumerate(tasks):
            if number in failed:
                continue
            say(f"{result.title}, {server.name}: {name}")
            done = runs.setdefault(number, [])
            idle_s = done[-1][0] if done else _FIRST_IDLE_S
            with probe.Watch(server.pid, server.port, idle_s=idle_s) as watch:
                read = probe.read_all(server.port, path, server.token, needle)
            if read.status != 200 or read.error or read.rows != expected:
                failed.add(number)
                why = read.error or f"{read.rows:,} of {expected:,} rows"
                why = why if read.status == 200 else str(read.status)
                _remark(f"{result.title}, {server.name}, {name}: {why}")
                continue
            answered = f"{read.size / 1e6:.1f} MB"
            worst = watch.worst(read.started, read.ended)
            done.append((read.seconds, *worst, answered))
    for number, (server, name, *_rest) in enumerate(tasks):
        if runs.get(number) and number not in failed:
            result.greedy.append(_summed_up(server, name, runs[number]))


def _measure_crowds(
    result: DatabaseReport, servers: Sequence[Server], count: int
) -> None:
    first = [f"{V1}?limit=100"] * _CROWD
    crowds = [
        ("v1, first pages", first, False),
        ("v1, a mixture", crowd(count, _CROWD, version=1), False),
        ("v2, a mixture", crowd(count, _CROWD, version=2), True),
    ]
    for name, paths, module_only in crowds:
        for server in servers:
            if server.name in (INDEXED, BEFORE_INDEXED):
                continue
            if module_only and not server.has_module:
                continue
            say(f"{result.title}, {server.name}: {_CROWD} x {name}")
            idle_s = _FIRST_IDLE_S
            with probe.Watch(server.pid, server.port, idle_s=idle_s) as watch:
                done = probe.burst(server.port, paths, server.token)
            statuses = ", ".join(f"{n} x {key}" for key, n in done.statuses.items())
            if done.statuses != {"200": _CROWD}:
                _remark(f"{result.title}, {server.name}, {name}: {statuses}")
            worst = watch.worst(done.started, done.ended)
            run = (done.seconds, *worst, statuses)
            result.crowds.append(_summed_up(server, f"{_CROWD} x {name}", [run]))


def _summed_up(
    server: Server,
    name: str,
    runs: Sequence[tuple[float, float, float, float, str]],
) -> Greedy:
    return Greedy(
        server=server.name,
        request=name,
        seconds=statistics.median(seconds for seconds, *_ in runs),
        answered=runs[-1][4],
        idle_ms=max(idle for _, idle, *_ in runs),
        busy_ms=max(busy for _, _, busy, *_ in runs),
        added_ms=max(max(0.0, busy - idle) for _, idle, busy, *_ in runs),
        growth_mib=max(growth for _, _, _, growth, _ in runs),
    )


if __name__ == "__main__":
    sys.exit(main())
