# SPDX-License-Identifier: Apache-2.0
"""The requests that the benchmark sends in turn to every server."""

import http.client
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from attrs import field, frozen, mutable
from rows import COMMON_WORD, RARE_WORD, names

Json = dict[str, Any]
Params = dict[str, str | int]

V1 = "/_synapse/admin/v1/federation/destinations"
V2 = "/_synapse/admin/v2/federation/destinations"
SUMMARY = "/_synapse/admin/v2/federation/summary"

ORDERS = (
    "retry_last_ts",
    "retry_interval",
    "failure_ts",
    "last_successful_stream_ordering",
)
STATUSES = ("online", "unknown", "backing_off", "retry_due")
DETAIL = "detail"

# How long the summary may read on in the background.
_SUMMARY_S = 2.0
_PAGES = 20
# A walk that has taken so long ends early: all its pages cost the same, and much.
_WALK_S, _FEWEST_PAGES = 1.0, 5
# A connection that has been idle for longer may have been closed by the server.
_IDLE_S = 15.0


class NotAnsweredError(Exception):
    """A request was not answered with 200; the text is short enough for a table."""


@mutable
class Server:
    """One homeserver, as its clients see it."""

    name: str
    port: int
    token: str
    pid: int
    has_module: bool
    restart: Callable[[], int]
    """Starts the process anew, and returns the new process id."""
    v2_tokens: list[str] = field(factory=list)
    """Where the pages of a full walk by name with `limit=1000` start, from the second
    on."""
    walk_s: float = 0.0
    """How long that walk took, in seconds."""
    _connection: http.client.HTTPConnection | None = None
    _used: float = 0.0

    def get(self, path: str, params: Params | None = None) -> tuple[float, Json]:
        """Send a request over a connection that is kept.

        Returns:
            Milliseconds from the first byte sent to the last one received, and the
            answer's JSON.

        Raises:
            NotAnsweredError: the status was not 200, or there was no answer.
        """
        if params:
            path = f"{path}?{urlencode(params)}"
        connection = self._connected()
        try:
            start = time.perf_counter()
            connection.request(
                "GET", path, headers={"Authorization": f"Bearer {self.token}"}
            )
            response = connection.getresponse()
            body = response.read()
            elapsed = (time.perf_counter() - start) * 1000
        except (OSError, http.client.HTTPException) as e:
            self._connection = None
            raise NotAnsweredError(type(e).__name__) from e
        self._used = time.monotonic()
        if response.status != 200:
            raise NotAnsweredError(str(response.status))
        answer: Json = json.loads(body)
        return elapsed, answer

    def start_anew(self) -> None:
        """Restart it, so that its memory is what it needs and no more."""
        self.pid = self.restart()
        self._connection = None
        pages: Sequence[Params] = ({}, {"limit": 0}, {"dir": "b"})
        for params in [*pages] * 5:
            self.get(V1, params)

    def _connected(self) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None or time.monotonic() - self._used > _IDLE_S:
            if connection is not None:
                connection.close()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            connection.connect()
            self._connection = connection
        return connection


@frozen
class Turn:
    """One of the repetitions; no two of them ask for quite the same."""

    number: int
    count: int
    """How many destinations there are."""
    names: Sequence[str]
    """Some of their names."""


@frozen
class Case:
    """One line of the table."""

    name: str
    ask: Callable[[Server, Turn], tuple[float, Any]]
    """Asks, and returns milliseconds and what must be the same on all servers."""


def turns(repetitions: int, count: int) -> list[Turn]:
    """Make the repetitions."""
    sample = list(itertools.islice(names(count), 10 * repetitions))
    return [
        Turn(number, count, sample[10 * number : 10 * number + 10])
        for number in range(repetitions)
    ]


def v1_cases() -> list[Case]:
    """Make the requests that stock Synapse knows, too."""
    cases = [
        Case(DETAIL, lambda server, turn: _details(server, V1, turn)),
        _page("first page", {}),
        _page("middle page, by a jump", {}, _middle),
        _page("last page, by a jump", {}, _last),
        _page("last page first (`dir=b`)", {"dir": "b"}),
        _page("end of `dir=b`, by a jump", {"dir": "b"}, _last),
        _page("search, few matches", {"destination": RARE_WORD}),
        _page("search, many matches", {"destination": COMMON_WORD}),
        _page("search, many matches, its page 11", {"destination": COMMON_WORD}, _1000),
        _page("count (`limit=0`)", {"limit": 0}),
        _walk("walk from the middle", {}, _middle),
        _walk("walk from the start, `dir=b`", {"dir": "b"}),
        _walk("walk through a search", {"destination": COMMON_WORD}),
    ]
    for order, direction in itertools.product(ORDERS, "fb"):
        params: Params = {"order_by": order, "dir": direction}
        name = f"`{order}`, `dir={direction}`"
        # Stock sorts NULL differently: only the name's pages can be compared.
        cases += [
            _page(f"{name}: first page", params, same=False),
            _page(f"{name}: last page, by a jump", params, _last, same=False),
            _walk(f"{name}: walk from the start", params),
        ]
    return cases


def v2_cases() -> list[Case]:
    """Make the requests that only the module knows."""
    cases = [
        Case(DETAIL, lambda server, turn: _details(server, V2, turn)),
        _v2("first page", {}),
        Case(
            "page in the middle of a walk",
            lambda server, turn: _from_token(server, turn, lambda n: n // 2),
        ),
        Case(
            "page near the end of a walk",
            lambda server, turn: _from_token(server, turn, lambda n: n - 2),
        ),
        _walk("walk from the start", {}, path=V2),
        _v2("`dir=b`", {"dir": "b"}),
        _v2("`limit=1000`", {"limit": 1000}),
        _v2("`include=backlog`", {"include": "backlog"}),
        _v2("`total=true`", {"total": "true"}),
        _v2("substring, few matches", {"destination": RARE_WORD}),
        _v2("substring, many matches", {"destination": COMMON_WORD}),
        _v2("glob, few matches", {"destination": f"*{RARE_WORD}*"}),
        _v2("glob, many matches", {"destination": f"{COMMON_WORD}*"}),
    ]
    for status in STATUSES:
        cases += [
            _v2(f"`status={status}`", {"status": status}),
            _walk(f"`status={status}`: walk", {"status": status}, path=V2),
        ]
    failing: Params = {"failing_for": "7d"}
    due: Params = {"status": "retry_due"}
    cases += [
        _v2("`failing_for=7d`", failing),
        _walk("`failing_for=7d`: walk", failing, path=V2),
        _v2("`failing_for=7d`, `total=true`", {**failing, "total": "true"}),
        _v2("`status=retry_due`, `total=true`", {**due, "total": "true"}),
    ]
    for order in ("next_retry_ts", *ORDERS):
        for direction in "fb":
            params: Params = {"order_by": order, "dir": direction}
            name = f"`{order}`, `dir={direction}`"
            cases += [
                _v2(f"{name}", params),
                _walk(f"{name}: walk", params, path=V2),
            ]
    oldest: Params = {**failing, "order_by": "failure_ts"}
    cases.append(_v2("`failing_for=7d`, `failure_ts`", oldest))
    return [*cases, Case("summary", lambda server, _: (_summary(server), None))]


def _summary(server: Server) -> float:
    """Return how long it takes, when what it has set off has ended, too."""
    took = server.get(SUMMARY)[0]
    time.sleep(_SUMMARY_S)
    return took


def walk_all(server: Server) -> int:
    """Walk through all destinations of v2 by name, and remember where pages start.

    Returns:
        How many different names came.
    """
    start = time.perf_counter()
    params: Params = {"limit": 1000}
    found: set[str] = set()
    server.v2_tokens = []
    while True:
        _, answer = server.get(V2, params)
        found.update(row["destination"] for row in answer["destinations"])
        token = answer.get("next_token")
        if token is None:
            break
        server.v2_tokens.append(token)
        params = {"limit": 1000, "from": token}
    server.walk_s = time.perf_counter() - start
    return len(found)


# One figure each.


def _middle(turn: Turn) -> int:
    return turn.count // 2 + 137 * turn.number


def _last(turn: Turn) -> int:
    return turn.count - 100 + turn.number


def _1000(turn: Turn) -> int:
    return 1000 + 100 * turn.number


def _page(
    name: str,
    params: Params,
    offset: Callable[[Turn], int] | None = None,
    *,
    same: bool = True,
) -> Case:
    def ask(server: Server, turn: Turn) -> tuple[float, Any]:
        start: Params = {"from": offset(turn)} if offset else {}
        elapsed, answer = server.get(V1, {**params, **start})
        shown = [row["destination"] for row in answer["destinations"]]
        return elapsed, (answer["total"], shown if same else len(shown))

    return Case(name, ask)


def _walk(
    name: str,
    params: Params,
    offset: Callable[[Turn], int] | None = None,
    *,
    path: str = V1,
) -> Case:
    def ask(server: Server, turn: Turn) -> tuple[float, Any]:
        start: Params = {"from": offset(turn)} if offset else {}
        return _median_page(server, path, {**params, **start}), None

    return Case(f"{name}, per page", ask)


def _v2(name: str, params: Params) -> Case:
    def ask(server: Server, _: Turn) -> tuple[float, Any]:
        elapsed, answer = server.get(V2, params)
        # Meanwhile retries become due: what depends on the clock cannot be compared.
        total = None if "status" in params else answer.get("total")
        return elapsed, (total, len(answer["destinations"]))

    return Case(name, ask)


def _median_page(server: Server, path: str, params: Params) -> float:
    """Walk some pages on; the median of all pages but the first."""
    figures: list[float] = []
    spent = 0.0
    while len(figures) < _PAGES and (
        spent < _WALK_S * 1000 or len(figures) < _FEWEST_PAGES
    ):
        elapsed, answer = server.get(path, params)
        figures.append(elapsed)
        spent += elapsed
        if "next_token" not in answer:
            break
        params = {**params, "from": answer["next_token"]}
    if len(figures) == 1:
        raise NotAnsweredError("one page")
    return statistics.median(figures[1:])


def _from_token(
    server: Server, turn: Turn, place: Callable[[int], int]
) -> tuple[float, Any]:
    tokens = server.v2_tokens
    if not tokens:
        raise NotAnsweredError("no token")
    token = tokens[max(0, place(len(tokens)) - turn.number)]
    elapsed, answer = server.get(V2, {"from": token})
    return elapsed, len(answer["destinations"])


def _details(server: Server, path: str, turn: Turn) -> tuple[float, Any]:
    figures = [server.get(f"{path}/{quote(name, safe='')}")[0] for name in turn.names]
    return statistics.median(figures), None


# Two hundred at once.


def crowd(count: int, requests: int, *, version: int) -> list[str]:
    """Make the paths of requests that many clients send at the same moment."""
    dice = random.Random(requests + version)  # noqa: S311
    make = _v1_of_crowd if version == 1 else _v2_of_crowd
    path = V1 if version == 1 else V2
    return [f"{path}?{urlencode(make(dice, count))}" for _ in range(requests)]


def _v1_of_crowd(dice: random.Random, count: int) -> Params:
    kind = dice.random()
    if kind < 0.4:
        return {"limit": dice.choice((10, 50, 100))}
    if kind < 0.6:
        # People walk on from the start: few come further than a tenth of the way.
        return {"from": 100 * dice.randrange(1, max(2, count // 1000))}
    if kind < 0.8:
        return {"order_by": dice.choice(ORDERS), "dir": dice.choice("fb")}
    if kind < 0.9:
        return {"destination": dice.choice((RARE_WORD, COMMON_WORD, "otter", "maple"))}
    return {"limit": 0}


def _v2_of_crowd(dice: random.Random, _: int) -> Params:
    kind = dice.random()
    if kind < 0.4:
        return {"limit": dice.choice((10, 50, 100))}
    if kind < 0.6:
        return {"status": dice.choice(STATUSES)}
    if kind < 0.8:
        order = dice.choice(("next_retry_ts", *ORDERS))
        return {"order_by": order, "dir": dice.choice("fb")}
    if kind < 0.9:
        return {"destination": dice.choice((f"*{RARE_WORD}*", "otter", "maple"))}
    return {"failing_for": "7d", "include": "backlog"}
