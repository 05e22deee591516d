# SPDX-License-Identifier: Apache-2.0
"""Writes what was measured as Markdown."""

import argparse
import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from attrs import field, frozen, mutable
from plan import DETAIL

Figures = list[float] | str
"""One per repetition; or why there are none."""


@frozen
class Greedy:
    """One kind of greedy request, or of crowd, at one server."""

    server: str
    request: str
    seconds: float
    """The median."""
    answered: str
    """How much of it came."""
    idle_ms: float
    """The worst `/health` latency just before."""
    busy_ms: float
    """The worst `/health` latency meanwhile."""
    added_ms: float
    """The largest difference of the two in one repetition."""
    growth_mib: float


@mutable
class DatabaseReport:
    """What was measured on one database."""

    title: str
    servers: Sequence[str]
    """Stock first, then the module, then the module with indexes; and both as they
    were before, if that is measured beside."""
    v1: dict[str, dict[str, Figures]] = field(factory=dict)
    """By request, then by server."""
    v2: dict[str, dict[str, Figures]] = field(factory=dict)
    walks: dict[str, float] = field(factory=dict)
    """Seconds of a walk through all destinations on v2, by server."""
    greedy: list[Greedy] = field(factory=list)
    crowds: list[Greedy] = field(factory=list)


STOCK, MODULE, INDEXED = "stock", "module", "module, `indexes: true`"
BEFORE, BEFORE_INDEXED = "before", "before, `indexes: true`"

_INTRODUCTION = """\
# Benchmarks

The tables here are written by `python bench/scale.py`, those of the last sections by
`python bench/idle.py`, `python bench/traffic.py` and `python bench/console.py`, which
`tox -e bench` runs: do not edit them by hand.

Stock Synapse and Synapse with the module run side by side on identical copies of one
database, one process each, on the machine below. The same requests go to each of them
in turn, over HTTP and connections that are kept; every figure is the median of
{repetitions} repetitions, in milliseconds, and no two repetitions jump to the same
page. Absolute figures are this machine's; ratios say more.

{machine}

The data: about 6 % of the destinations fail, since minutes or up to 100 days ago, a
third of these with their retry due; to 14 % nothing has been delivered yet; the others
are online. There are about as many rows in `destination_rooms` as destinations. Nothing
is sent meanwhile: no process is a federation sender.

- A *jump* asks for an offset that the server has not handed out.
- *Per page* is the median page of a walk of 20 pages (fewer, but at least 5, once they
  have taken 1 s together), the first one left out.
- "x stock" compares with stock's figure for the same request, "x detail" with the same
  server's own v1 request for one destination, in the same repetition.
- `/health` is polled all the time over a connection of its own. *Idle* is its worst
  latency just before, over a time as long; *busy* is the worst while the request runs,
  and *added* the largest difference of the two in one repetition.
- *Memory* is how far the peak of the process's resident memory rises. Before the greedy
  requests the servers are started anew, so that no earlier request has grown it.
- A status code, or another word, in place of a figure says why there is none.
"""


IDLE, TRAFFIC = "## Doing nothing", "## Federation traffic"
CONSOLE = "## The console"
"""The headings of the last sections of the page, which are written by themselves."""


_PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def section_options(doc: str, **numbers: tuple[int, str]) -> argparse.ArgumentParser:
    """Return what parses the options of a program that writes one section.

    Args:
        doc: The program's docstring.
        numbers: Options that are numbers, with their defaults and what they are.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--output", type=Path, default=_PAGE, help="the page")
    return parser


def write_section(page: Path, heading: str, lines: Sequence[str]) -> None:
    """Print a section, and put it into a page in place of the one it has."""
    section = "\n".join([f"Commit {_commit()}, measured on {_today()}.", "", *lines])
    print(section)
    text = page.read_text("utf-8") if page.exists() else ""
    before, _, rest = text.partition(heading)
    _, next_, after = rest.partition("\n## ")
    text = f"{before.rstrip()}\n\n{heading}\n\n{section}\n{next_}{after}".lstrip()
    page.write_text(text, encoding="utf-8")


def sections_from(page: Path, heading: str) -> str:
    """Return a section of a page and those after it; "" if it has none such."""
    text = page.read_text("utf-8") if page.exists() else ""
    _, found, sections = text.partition(heading)
    return f"\n{found}{sections}" if found else ""


def _commit() -> str:
    """Return of which commit this is, and whether it was changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607  # wherever it is
        cwd=_PAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"`{done.stdout.strip()}`" if done.stdout else "unknown"


def _today() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")


def machine_and_versions(postgres: str | None) -> str:
    """Describe the machine and what runs on it, without naming it."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    module = importlib.metadata.version("synapse-federation-admin")
    lines = [
        ("Date", _today()),
        ("Commit", _commit()),
        ("CPU", f"{cpu}, {len(os.sched_getaffinity(0))} cores"),
        ("Memory", f"{memory:.0f} GiB"),
        ("Kernel", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("Synapse", importlib.metadata.version("matrix-synapse")),
        ("synapse-federation-admin", module),
        ("SQLite", sqlite3.sqlite_version),
    ]
    if postgres is not None:
        lines.append(("PostgreSQL", postgres))
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in lines)])


def write(
    reports: Sequence[DatabaseReport],
    remarks: Sequence[str],
    *,
    repetitions: int,
    machine: str,
) -> str:
    """Write the page."""
    parts = [_INTRODUCTION.format(repetitions=repetitions, machine=machine)]
    parts += [_database(report) for report in reports]
    if remarks:
        parts.append("## What went wrong\n\n" + "\n".join(f"- {r}" for r in remarks))
    return "\n".join(parts).rstrip() + "\n"


def _database(report: DatabaseReport) -> str:
    servers = report.servers
    head = ["v1 request"]
    for name in servers:
        head += [f"{name}, ms"]
        head += ["x detail"] if name == STOCK else ["x stock", "x detail"]
    head += _beside(report)
    lines = [f"## {report.title}\n", *_table(head, _v1(report)), ""]
    if report.v2:
        head = ["v2 request"]
        for name in servers[1:]:
            head += [f"{name}, ms", "x v1 detail"]
        head += _beside(report)
        lines += [*_table(head, _v2(report)), ""]
        lines += [
            f"A walk through all of v2, `limit=1000`, {name}: {seconds:.1f} s.\n"
            for name, seconds in report.walks.items()
        ]
    head = ["greedy request", "server", "s", "answer"]
    head += ["idle, ms", "busy, ms", "added, ms", "memory, MiB"]
    lines += [*_table(head, map(_greedy, report.greedy)), ""]
    head[0] = "at the same moment"
    lines += [*_table(head, map(_greedy, report.crowds)), ""]
    return "\n".join(lines)


def _v1(report: DatabaseReport) -> list[list[str]]:
    details = report.v1[DETAIL]
    table = []
    for name, figures in report.v1.items():
        line = [name]
        for server in report.servers:
            mine = figures.get(server, "-")
            line.append(_ms(mine))
            if server != STOCK:
                line.append(_ratio(mine, figures.get(STOCK, "-")))
            line.append(_ratio(mine, details.get(server, "-")))
        table.append(line + _compared(report, figures))
    return table


def _v2(report: DatabaseReport) -> list[list[str]]:
    details = report.v1[DETAIL]
    table = []
    for name, figures in report.v2.items():
        line = [name]
        for server in report.servers[1:]:
            mine = figures.get(server, "-")
            line += [_ms(mine), _ratio(mine, details.get(server, "-"))]
        table.append(line + _compared(report, figures))
    return table


def _beside(report: DatabaseReport) -> list[str]:
    if BEFORE not in report.servers:
        return []
    return [f"{MODULE}, x before", f"{INDEXED}, x before"]


def _compared(report: DatabaseReport, figures: dict[str, Figures]) -> list[str]:
    if BEFORE not in report.servers:
        return []
    pairs = ((MODULE, BEFORE), (INDEXED, BEFORE_INDEXED))
    return [_ratio(figures.get(a, "-"), figures.get(b, "-")) for a, b in pairs]


def _greedy(row: Greedy) -> list[str]:
    return [
        *(row.request, row.server, f"{row.seconds:.2f}", row.answered),
        *(f"{row.idle_ms:.0f}", f"{row.busy_ms:.0f}", f"{row.added_ms:.0f}"),
        f"{row.growth_mib:.0f}",
    ]


def _table(head: Sequence[str], rows: Iterable[list[str]]) -> list[str]:
    aligned = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(line)} |" for line in (head, aligned, *rows)]


def median(figures: list[float]) -> float:
    """Return the median, of an even number the lower of the two in the middle."""
    return sorted(figures)[(len(figures) - 1) // 2]


def _ms(figures: Figures) -> str:
    if isinstance(figures, str):
        return figures
    value = median(figures)
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _ratio(figures: Figures, others: Figures) -> str:
    """Write the median of the ratios of each repetition."""
    if isinstance(figures, str) or isinstance(others, str):
        return "-"
    value = median([a / b for a, b in zip(figures, others, strict=True)])
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
