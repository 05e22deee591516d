# SPDX-License-Identifier: Apache-2.0
"""Measure the console: its pages beside v2, and ten people who leave one open.

1,000,000 destinations on PostgreSQL, of which 100,000 fail, with recorded failures and
outages; some names are as long and as hostile as anybody can make them. Writes its
section of the page:

- each page: how long it takes, beside the requests of v2 for the same; the CPU time of
  the process; for how long one turn of the reactor holds it at most; its weight;
- ten people who leave a page open: `/health`, beside when nobody does, in turn, and how
  far the memory of the process grows.

    python bench/console.py
    python bench/console.py --rows 100000 --seconds 20 --runs 1 --output /tmp/console.md

The first takes two hours.
"""

import http.client
import json
import re
import tempfile
import threading
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import mean, median, quantiles
from urllib.parse import quote, urlencode

import rows
from attrs import frozen
from copies import PostgresCopies, say
from probe import cpu_s, watch_of
from report import CONSOLE, section_options, write_section
from ticks import read_ticks, with_ticks

from synapse_federation_admin.console.cookie import Origin, Session, cookie_name
from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.homeserver.admin_resource import CONSOLE_PATH
from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.services import Postgres
from synapse_federation_admin.playground.synapse import SynapseServer

V2 = "/_synapse/admin/v2/federation"

_FAILING_SHARE = 10
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS

# As the rows of the console's list: what it asks of v2.
_LISTED = {
    "limit": 50,
    "total": "true",
    "include": ["backlog", "failure", "availability", "local_users"],
}

_CLIENTS = 10
_HEALTH_PAUSE_S = 0.05
_SETTLED_S = 75

# As the script of a page does: what has changed is asked, and the page is read anew.
_ASKED_EVERY_S = 5
_SLOW_S = 120
_MANY_S = 30

# As long as a name of a row may be, and of what is longest once it is escaped.
_NAME = 255
_HOSTILE = ("<", "'", '"', "&", "%", "\u202e", "\U000e0041", "a")

_KINDS = [kind.value for kind in FailureKind][:12]
_KIND = f"(ARRAY{_KINDS})[(1 + n % {len(_KINDS)})::int]"

_FAILING = f"""
CREATE TEMPORARY TABLE failing AS
SELECT destination, failure_ts, row_number() OVER (ORDER BY destination) AS n
FROM destinations WHERE retry_last_ts > 0;

INSERT INTO federation_admin_failures
SELECT destination, {_KIND}, 'Its certificate, or one in the chain, has expired: ' ||
    'the certificate of ' || left(destination, 60) || ' ended 7 days ago',
    failure_ts, {{now_ms}} - n, 7 + n % 100, 'master', '', NULL
FROM failing ON CONFLICT DO NOTHING;

INSERT INTO federation_admin_outages
SELECT destination, failure_ts, NULL, NULL, {_KIND}, {_KIND}, 0
FROM failing ON CONFLICT DO NOTHING;

INSERT INTO federation_admin_outages
SELECT destination, {{now_ms}} - day * {_DAY_MS} - n % 10 * {_HOUR_MS},
    {{now_ms}} - day * {_DAY_MS} + 2 * {_HOUR_MS}, 'recovered', {_KIND}, {_KIND}, 0
FROM failing, generate_series(2, 12, 5) AS day
WHERE failure_ts > {{now_ms}} - {_DAY_MS} ON CONFLICT DO NOTHING;

UPDATE federation_admin_recording SET since_ts = {{now_ms}} - 30 * {_DAY_MS}::bigint;
"""  # noqa: S608

# What works begins to fail, until as many do as shall.
_MORE = """
UPDATE destinations SET retry_last_ts = {now_ms} - 60000, retry_interval = 600000,
    failure_ts = {now_ms} - hashtext(destination)::bigint % 1000000000 - 1000000000
WHERE destination IN (
    SELECT destination FROM destinations
    WHERE failure_ts IS NULL AND last_successful_stream_ordering IS NOT NULL
    LIMIT greatest(
        0, {failing} - (SELECT count(*) FROM destinations WHERE retry_last_ts > 0)
    )
);
"""


@frozen
class Case:
    """A page, and the requests of v2 for what it shows."""

    name: str
    page: str
    requests: Sequence[str]


@frozen
class Sample:
    """What one time took."""

    took_ms: float
    cpu_ms: float
    """Of the process."""
    held_ms: float
    """The longest turn of the reactor."""


@frozen
class Homeserver:
    """The homeserver, and who looks at it."""

    synapse: SynapseServer
    token: str
    ticks: Path

    def cpu_s(self) -> float:
        """Return the CPU time that the process has had."""
        return cpu_s(self.synapse.process("main").pid)

    def client(self) -> "Client":
        """Return somebody who is signed in."""
        return Client(self.synapse.layout.client_ports["main"], self.token)


class Client:
    """Asks over one connection, which is kept."""

    def __init__(self, port: int, token: str) -> None:
        session = Session(Session.new().id, Origin.PASTED, token)
        self._headers = {
            "Cookie": f"{cookie_name(rows.LOCAL_SERVER)}={session.value()}",
            "Authorization": f"Bearer {token}",
        }
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str) -> bytes:
        """Return an answer, which is 200."""
        try:
            self._connection.request("GET", path, headers=self._headers)
        except OSError:
            # Synapse closes what is not used for a while.
            self._connection.close()
            self._connection.request("GET", path, headers=self._headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status} {body[:2000]!r}")
        return body


def main() -> None:
    """Measure, print and write."""
    parser = section_options(
        __doc__,
        rows=(1_000_000, "destinations"),
        repetitions=(20, "of each page"),
        runs=(5, "with people, and as many without"),
        seconds=(600, "of each run"),
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="as bench/scale.py")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept: Path = options.keep or folder / "kept"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        postgres = stack.enter_context(Postgres(kept / "postgres"))
        certificates = CertificateAuthority(folder)
        copies = PostgresCopies(kept, folder, certificates, postgres)
        copies.build(options.rows)
        stack.callback(copies.drop, "console")
        ticks = folder / "ticks"
        synapse = copies.server("console", {}, wrapper=with_ticks(ticks))
        stack.enter_context(synapse)
        token = synapse.create_user("admin", admin=True).access_token
        say("console: failures, outages, hostile names")
        synapse.stop()
        postgres.execute(
            copies.database("console"), _statements(options.rows // _FAILING_SHARE)
        )
        synapse.start()
        homeserver = Homeserver(synapse, token, ticks)
        time.sleep(_SETTLED_S)
        lines = _pages(homeserver, options.repetitions)
        lines += _people(homeserver, options.runs, options.seconds)
    write_section(
        options.output,
        CONSOLE,
        [_INTRODUCTION.format(rows=options.rows, times=options.repetitions), *lines],
    )


def hostile_names() -> list[str]:
    """Return names, two pages of them, that come first in a list by name."""
    return [
        f"!{number:03}{_HOSTILE[number % len(_HOSTILE)] * (_NAME - 4)}"
        for number in range(100)
    ]


def _statements(failing: int) -> str:
    now_ms = int(time.time() * 1000)
    values = ", ".join(
        "('{}', {}, 600000, {}, NULL)".format(
            name.replace("'", "''"), now_ms - 1000, now_ms - _HOUR_MS
        )
        for name in hostile_names()
    )
    return (
        "INSERT INTO destinations (destination, retry_last_ts, retry_interval, "  # noqa: S608
        f"failure_ts, last_successful_stream_ordering) VALUES {values};"
        + _MORE.format(failing=failing, now_ms=now_ms)
        + _FAILING.format(now_ms=now_ms)
    )


# Pages.


def _cases(client: Client) -> Iterator[Case]:
    """Yield the pages; later pages of a list are found by their links."""
    yield Case(
        "overview",
        "/",
        [
            "/summary",
            "/runs?limit=5",
            "/audit?limit=10",
            "/attention?limit=10",
        ],
    )
    for name, query in (
        ("servers", {"order_by": "destination", "destination": "*.*"}),
        ("names as hostile as can be", {}),
        ("failing for a week, the longest first", {"failing_for": "7d"}),
        ("failing, by cause", {"failure": _KINDS[0]}),
        ("next try first", {"status": "backing_off", "order_by": "next_retry_ts"}),
        ("that match a word", {"destination": "matrix.", "dir": "b"}),
        ("last delivered first", {"order_by": "last_successful_stream_ordering"}),
    ):
        tail = f"?{urlencode(query)}" if query else ""
        path = f"/servers{tail}"
        yield Case(f"servers: {name}", path, [_list(query)])
        for _ in range(3):
            path = _next_page(client.get(CONSOLE_PATH + path))
        token = re.findall("[?&]from=([^&]+)", path)[0]
        yield Case(
            f"servers: {name}, page 4",
            path,
            [_list(query) + f"&from={token}"],
        )
    found = client.get(f"{CONSOLE_PATH}/servers?failing_for=0s&order_by=failure_ts")
    names = re.findall(r'name="name" value="([^"]+)"', found.decode())
    for what, name in (
        ("a failing one", names[0]),
        ("one with a hostile name", hostile_names()[0]),
    ):
        one = quote(name, safe="")
        yield Case(
            f"server: {what}",
            f"/servers/{one}",
            [
                f"/destinations/{one}",
                f"/destinations/{one}/outages?limit=10",
                f"/audit?limit=10&destination={one}",
                f"/destinations/{one}/tell",
            ],
        )
    yield Case("us", "/us", ["/summary", "/status"])
    yield Case("runs", "/runs", ["/runs"])
    yield Case("audit", "/audit", ["/audit?limit=30"])


def _list(query: dict[str, str]) -> str:
    return "/destinations?" + urlencode({**query, **_LISTED}, doseq=True)


def _next_page(body: bytes) -> str:
    (link,) = re.findall(r'rel="next" href="([^"]+)"', body.decode())
    return str(link).replace("&amp;", "&").removeprefix(CONSOLE_PATH)


def _pages(homeserver: Homeserver, repetitions: int) -> list[str]:
    client = homeserver.client()
    lines = []
    for case in _cases(client):
        say(f"console: {case.name}")
        # Whatever is read once, and compiled, is so then.
        weight = len(client.get(CONSOLE_PATH + case.page))
        pages, answers = [], []
        for _ in range(repetitions):
            pages.append(_measure(homeserver, client, [CONSOLE_PATH + case.page]))
            paths = [V2 + path for path in case.requests]
            answers.append(_measure(homeserver, client, paths))
        lines.append(_line(case.name, answers, pages, weight))
        say(lines[-1])
    return lines


def _measure(homeserver: Homeserver, client: Client, paths: Sequence[str]) -> Sample:
    cpu_s = homeserver.cpu_s()
    began = time.monotonic()
    for path in paths:
        client.get(path)
    ended = time.monotonic()
    # The last turn is written when it is over.
    time.sleep(0.02)
    ticks = read_ticks(homeserver.ticks, began, ended)
    return Sample(
        (ended - began) * 1000,
        (homeserver.cpu_s() - cpu_s) * 1000,
        max((tick.cpu_ms for tick in ticks), default=0),
    )


def _line(name: str, answers: list[Sample], pages: list[Sample], weight: int) -> str:
    json_ms, page_ms = (median(s.took_ms for s in some) for some in (answers, pages))
    # The system counts it in hundredths of a second.
    json_cpu, page_cpu = (mean(s.cpu_ms for s in some) for some in (answers, pages))
    json_held, held = (median(s.held_ms for s in some) for some in (answers, pages))
    return (
        f"| {name} | {json_ms:.0f} | {page_ms:.0f} | {page_ms / json_ms:.2f} "
        f"| {json_cpu:.0f} | {page_cpu:.0f} | {json_held:.1f} | {held:.1f} "
        f"| {max(page.held_ms for page in pages):.1f} | {weight / 1000:.1f} |"
    )


# People.


def _people(homeserver: Homeserver, runs: int, seconds: int) -> list[str]:
    client = homeserver.client()
    # One page each; of a list, the first or a later one.
    paths = [case.page for case in _cases(client)][::2]
    without: list[Run] = []
    with_: list[Run] = []
    for number in range(runs):
        # The other first each time: a machine gets warm.
        for has_people in (number % 2 == 1, number % 2 == 0):
            say(f"console: {'people' if has_people else 'nobody'}, run {number + 1}")
            run = _run(homeserver, paths if has_people else [], seconds)
            (with_ if has_people else without).append(run)
    first, *later = (round(run.grown_mib) for run in with_)
    return [
        "",
        _PEOPLE.format(clients=_CLIENTS, seconds=seconds, runs=runs),
        f"| nobody | {median(run.p99_ms for run in without):.1f} ms "
        f"| {median(run.cpu_share for run in without):.1%} | | |",
        f"| people | {median(run.p99_ms for run in with_):.1f} ms "
        f"| {median(run.cpu_share for run in with_):.1%} "
        f"| +{first} MiB, then at most +{max(later, default=0)} "
        f"| {median(run.answers for run in with_):.0f} |",
    ]


@frozen
class Run:
    """What came of some time."""

    p99_ms: float
    cpu_share: float
    grown_mib: float
    answers: int


def _run(homeserver: Homeserver, paths: Sequence[str], seconds: int) -> Run:
    with watch_of(homeserver.synapse, _HEALTH_PAUSE_S) as watch:
        answers = _look_on(homeserver, paths, seconds)
    return Run(
        quantiles(watch.health.samples, n=100)[-1],
        watch.cpu_s / seconds,
        watch.growth_mib,
        answers,
    )


def _look_on(homeserver: Homeserver, paths: Sequence[str], seconds: int) -> int:
    """Have people leave a page open each; returns how many requests that makes."""
    ends = time.monotonic() + seconds
    answers = count()

    def look(path: str) -> None:
        client = homeserver.client()
        since, next_read = int(time.time() * 1000), 0.0
        while time.monotonic() < ends:
            if next_read <= time.monotonic():
                body = client.get(CONSOLE_PATH + path).decode()
                next(answers)
                read = time.monotonic()
                next_read = read + min(_paces(body, {""}), default=_SLOW_S)
            changes = json.loads(client.get(f"{CONSOLE_PATH}/changes?since={since}"))
            next(answers)
            since = changes["as_of_ts"]
            kinds = {kind for kind, found in changes.items() if found}
            # Those run, and nobody stops.
            kinds -= {"processes"}
            paces = _paces(body, kinds)
            if not changes["is_complete"] and _paces(body, set(changes)):
                paces = [_MANY_S]
            next_read = min([next_read, *(read + s for s in paces)])
            time.sleep(max(0, min(_ASKED_EVERY_S, ends - time.monotonic())))

    threads = [
        threading.Thread(target=look, args=[paths[number % len(paths)]])
        for number in range(_CLIENTS if paths else 0)
    ]
    for thread in threads:
        thread.start()
        # Not all in step.
        time.sleep(0.3)
    time.sleep(max(0, ends - time.monotonic()))
    for thread in threads:
        thread.join()
    return next(answers)


def _paces(body: str, kinds: Container[str]) -> list[int]:
    """Return after how many seconds what is live on a page is read anew.

    Args:
        body: The page.
        kinds: What has changed; "" stands for what is read by time.
    """
    words = " ".join(re.findall(r'data-live="([^"]*)"', body)).split()
    found = (word.rpartition(":")[::2] for word in words)
    return [int(seconds) for kind, seconds in found if kind in kinds]


_INTRODUCTION = """\
{rows:,} destinations on PostgreSQL, of which one of ten fails; {times} times each.
Medians in ms, over a connection that is kept: the requests of v2 for what a page shows,
one after the other, and the page. *CPU* is the mean of the process's CPU time.
*Holds* is the longest turn of the reactor, in CPU time of its thread: what v2 and the
page hold it for in the median, and the page at worst. *Weight* is in kB.

| | v2 | page | x v2 | CPU, v2 | CPU, page | holds, v2 | holds | at worst | weight |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""

_PEOPLE = """\
{clients} people who leave one of these pages open for {seconds} s: medians of {runs}
runs in turn with as many without them. *Memory* is how far the process's rises.

| | `/health`, 99th percentile | CPU | memory | requests |
|---|---:|---:|---:|---:|"""

if __name__ == "__main__":
    main()
