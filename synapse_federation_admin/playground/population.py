# SPDX-License-Identifier: Apache-2.0
"""Who lives around the playground's homeserver: servers, rooms and people.

What fails, fails for real. For how long it has is made up.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import closing

from attrs import evolve, frozen

from synapse_federation_admin.playground.records import Behaviour
from synapse_federation_admin.playground.synapse import SynapseServer

B = Behaviour
_HOUR_S = 3600
_DAY_S = 24 * _HOUR_S
_KNOWN_FOR_S = 200 * _DAY_S

PEOPLE = ("alice", "bashir", "chiara", "dmitri", "emeka", "farah", "grete", "hiro")

ROOMS = {
    "Book club": PEOPLE[:3],
    "Town hall: news": PEOPLE,
    "Choir, rehearsals": PEOPLE[2:6],
    "Community garden": PEOPLE[1:4],
    "Faculty of physics": PEOPLE[4:],
    "Repair café": PEOPLE[5:7],
}
"""Rooms by name, with the local users in each; the admin is in all of them."""

_BOOKS, _NEWS, _CHOIR, _GARDEN, _PHYSICS, _REPAIR = ROOMS


@frozen
class Neighbour:
    """A remote server: what it will be like, and what it shares with us."""

    name: str
    """Its host name."""
    behaviour: Behaviour
    rooms: tuple[str, ...]
    failing_for_s: int = 0
    """For how long it is said to have been failing; 0: since it really fails."""
    outages: tuple[tuple[int, int], ...] = ()
    """Earlier ones that are made up: how many hours ago each began, and its hours."""


NEIGHBOURS = (
    Neighbour("matrix.library.example", B.HEALTHY, (_BOOKS, _NEWS), 0, ((200, 3),)),
    Neighbour("chat.uni.example", B.DOWN, (_PHYSICS, _NEWS), 0, ((90, 5), (250, 30))),
    Neighbour("matrix.club.example", B.EXPIRED_CERTIFICATE, (_CHOIR,), 39 * _DAY_S),
    Neighbour("shared.hoster.example", B.WRONG_NAME_CERTIFICATE, (_NEWS,), 5 * _DAY_S),
    Neighbour("m.makers.example", B.BAD_GATEWAY, (_REPAIR,), 3 * _HOUR_S, ((60, 2),)),
    Neighbour("old.acme.example", B.HANGING, (_NEWS,), 11 * _DAY_S),
    Neighbour("pi.attic.example", B.SLOW, (_GARDEN,), 0, ((30, 9), (120, 20))),
    Neighbour("matrix.choir.example", B.HEALTHY, (_CHOIR,)),
    Neighbour("talk.garden.example", B.HEALTHY, (_GARDEN, _BOOKS)),
    Neighbour("synapse.cern.example", B.HEALTHY, (_PHYSICS,), 0, ((310, 1),)),
    Neighbour("hs.cafe.example", B.HEALTHY, (_REPAIR,)),
    Neighbour("im.observatory.example", B.HEALTHY, (_PHYSICS,)),
    Neighbour("matrix.press.example", B.HEALTHY, (_NEWS,)),
    Neighbour("home.vogel.example", B.HEALTHY, (_GARDEN,), 0, ((20, 4),)),
    Neighbour("chat.theatre.example", B.HEALTHY, (_BOOKS,)),
    Neighbour("matrix.school.example", B.HEALTHY, (_BOOKS,)),
    Neighbour("nas.keller.example", B.DOWN, (_GARDEN,), 6 * _HOUR_S, ((70, 10),)),
    Neighbour("matrix.startup.example", B.DOWN, (_NEWS,), 74 * _DAY_S),
    Neighbour("hs.hackspace.example", B.DOWN, (_REPAIR,), 17 * _DAY_S),
    Neighbour("m.gallery.example", B.EXPIRED_CERTIFICATE, (_BOOKS,), 2 * _DAY_S),
    Neighbour("matrix.coop.example", B.EXPIRED_CERTIFICATE, (_NEWS,), 9 * _HOUR_S),
    Neighbour("box.nora.example", B.UNTRUSTED_CERTIFICATE, (_CHOIR,), 4 * _DAY_S),
    Neighbour("lab.institute.example", B.PLAIN_HTTP, (_PHYSICS,), 26 * _HOUR_S),
    Neighbour("matrix.city.example", B.BAD_GATEWAY, (_NEWS, _CHOIR)),
    Neighbour("fortress.example", B.FORBIDDEN, (_NEWS,), 12 * _DAY_S),
    Neighbour("tiny.proxy.example", B.TOO_LARGE, (_PHYSICS,), 5 * _HOUR_S),
    Neighbour("busy.hub.example", B.RATE_LIMITED, (_NEWS,), 0, ((45, 2), (190, 3))),
    Neighbour("www.parish.example", B.NOT_FOUND, (_CHOIR,), 52 * _DAY_S),
    Neighbour("gone.startup.example", B.NO_NAME, (_BOOKS,), 121 * _DAY_S),
    Neighbour("chat.oldclub.example", B.NO_NAME, (_CHOIR,), 33 * _DAY_S),
)


def without_names(neighbour: Neighbour) -> Neighbour:
    """Return the same where host names cannot be made up: none can be gone, either."""
    if neighbour.behaviour is not B.NO_NAME:
        return neighbour
    return evolve(neighbour, behaviour=B.DOWN)


def make_older(
    synapse: SynapseServer, servers: Iterable[tuple[str, Neighbour]]
) -> None:
    """Have what fails be said to have failed for longer, and make earlier outages up.

    Args:
        synapse: runs, and does not keep retry timings in memory.
        servers: the server name of each neighbour.
    """
    change(synapse, _statements(servers, int(time.time() * 1000)))


def _statements(
    servers: Iterable[tuple[str, Neighbour]], now_ms: int
) -> list[tuple[str, list[str | int]]]:
    known_ms = _KNOWN_FOR_S * 1000
    statements: list[tuple[str, list[str | int]]] = [
        ("UPDATE federation_admin_recording SET since_ts = since_ts - ?", [known_ms]),
        ("UPDATE federation_admin_successes SET first_ts = first_ts - ?", [known_ms]),
    ]
    for name, neighbour in servers:
        older_ms = neighbour.failing_for_s * 1000
        # Backoff doubles; what is left of it is at most a day.
        interval_ms = min(max(older_ms // 2, 600_000), _DAY_S * 1000)
        for statement, values in (
            (
                "UPDATE destinations SET failure_ts = failure_ts - ?, "
                "retry_interval = ? WHERE destination = ? AND failure_ts IS NOT NULL",
                [older_ms, interval_ms],
            ),
            (
                "UPDATE federation_admin_outages SET start_ts = start_ts - ? "
                "WHERE destination = ? AND end_ts IS NULL",
                [older_ms],
            ),
            (
                "UPDATE federation_admin_successes SET last_ts = last_ts - ? "
                "WHERE destination = ?",
                [older_ms],
            ),
            (
                "UPDATE federation_admin_failures SET first_ts = first_ts - ?, "
                "count = count + ? WHERE destination = ?",
                [older_ms, (older_ms // 600_000).bit_length()],
            ),
        ):
            if older_ms:
                statements.append((statement, [*values, name]))
        for begun_h, hours in neighbour.outages:
            start_ms = now_ms - begun_h * _HOUR_S * 1000
            end_ms = start_ms + hours * _HOUR_S * 1000
            statements.append(
                (
                    "INSERT INTO federation_admin_outages "
                    "(destination, start_ts, end_ts, ended, kinds, last_kind) "
                    "VALUES (?, ?, ?, 'recovered', ?, ?)",
                    [name, start_ms, end_ms, *["connection_refused"] * 2],
                )
            )
    return statements


def change(
    synapse: SynapseServer, statements: Sequence[tuple[str, list[str | int]]]
) -> None:
    """Execute statements, each with its values: names and numbers of our own."""
    if synapse.postgres is not None and synapse.database is not None:
        for statement, values in statements:
            # All of them are ours: names and numbers.
            literals = [json.dumps(value).replace('"', "'") for value in values]
            text = statement.replace("?", "{}").format(*literals)
            synapse.postgres.execute(synapse.database, text)
        return
    file = synapse.folder / "homeserver.db"
    with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
        for statement, values in statements:
            connection.execute(statement, values)
