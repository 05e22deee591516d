# SPDX-License-Identifier: Apache-2.0
"""Fills a Synapse database with the destinations of a large homeserver.

The same seed gives the same rows on SQLite and on PostgreSQL; only the times move with
the moment at which it is done (`now_ms`).
"""

import io
import math
import random
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import psycopg2
from attrs import frozen

RECIPE = 1
"""Raised with every change of what is filled in, so that no kept database is stale."""

LOCAL_SERVER = "bench.example"
"""The homeserver's own name."""

RARE_WORD = "quokka"
"""In about 20 names, however many there are."""

COMMON_WORD = "matrix."
"""In about a fifth of all names."""

Row = tuple[str | int | bytes | None, ...]

_SEED = 20261123
_BATCH = 50_000
_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS
# Synapse's defaults: the first interval, and the one at which it stops growing.
_FIRST_INTERVAL_MS = 10 * _MINUTE_MS
_LONGEST_INTERVAL_MS = 7 * _DAY_MS
_LAST_STREAM_ORDERING = 40_000_000
_LOCAL_USERS = 50

_WORDS = re.findall(
    r"\w+",
    "alder amber anvil aspen basil beacon birch brook canyon cedar chess cloud "
    "copper coral delta ember falcon fern fjord garnet glacier harbor hazel heron "
    "indigo iris juniper kelp lantern larch lichen maple marble meadow mint moss "
    "nectar nova oak ocean onyx orchard osprey otter pebble pine plum prairie quartz "
    "raven reef ridge river rowan saffron sage sierra slate sparrow spruce summit "
    "thistle thyme tundra umber valley velvet walnut willow wren yarrow zephyr",
)
_SUFFIXES = ("org", "net", "com", "de", "fr", "eu", "io", "chat", "social", "cloud")
_PREFIXES = ("", "", "", "", "matrix.", "matrix.", "synapse.", "chat.", "m.", "hs1.")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Sink(Protocol):
    """A database, as far as filling it goes."""

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Insert rows."""

    def finish(self, last_stream_id: int) -> None:
        """Commit; `last_stream_id` is the last one used of any stream."""


class SqliteSink:
    """A SQLite database that no Synapse has open."""

    def __init__(self, path: Path) -> None:
        """Open it."""
        self._connection = sqlite3.connect(path)
        for pragma in ("synchronous = OFF", "cache_size = -800000"):
            self._connection.execute(f"PRAGMA {pragma}")

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Insert rows."""
        marks = ", ".join("?" for _ in columns)
        self._connection.executemany(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
            rows,
        )

    def finish(self, last_stream_id: int) -> None:  # noqa: ARG002
        """Commit, and leave one file. Synapse does not ANALYZE, so we do not."""
        self._connection.commit()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()


class PostgresSink:
    """A PostgreSQL database that no Synapse has open."""

    def __init__(self, **connect_args: str) -> None:
        """Connect as a superuser."""
        self._connection = psycopg2.connect(**connect_args)
        self._cursor = self._connection.cursor()
        # No check of foreign keys, row by row: the rows fit each other.
        self._cursor.execute("SET session_replication_role = replica")

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Insert rows."""
        text = io.StringIO()
        for row in rows:
            text.write("\t".join(map(_copied, row)) + "\n")
        text.seek(0)
        self._cursor.copy_expert(
            f"COPY {table} ({', '.join(columns)}) FROM STDIN", text
        )

    def finish(self, last_stream_id: int) -> None:
        """Commit, and do what autovacuum would have done."""
        for sequence in ("device_inbox_sequence", "device_lists_sequence"):
            self._cursor.execute("SELECT setval(%s, %s)", (sequence, last_stream_id))
        self._connection.commit()
        self._connection.autocommit = True
        self._cursor.execute("VACUUM ANALYZE")
        self._cursor.execute("CHECKPOINT")
        self._connection.close()


def _copied(value: str | int | bytes | None) -> str:
    if value is None:
        return r"\N"
    if isinstance(value, bytes):
        return r"\\x" + value.hex()
    return str(value)


def names(count: int) -> Iterator[str]:
    """Yield so many different server names in an order that is nobody's."""
    dice = random.Random(_SEED)  # noqa: S311
    rare = max(1, count // 20)
    for number in range(count):
        unique = _base36(number)
        shape = dice.random()
        if number % rare == rare // 2:
            yield f"{dice.choice(_WORDS)}-{RARE_WORD}{unique}.example.org"
        elif shape < 0.01:
            high, low = divmod(number, 0x10000)
            port = dice.choice(("", ":8448", ":443"))
            yield f"[2001:db8:{dice.randrange(1, 0xFFFF):x}::{high:x}:{low:x}]{port}"
        elif shape < 0.02:
            # Of 10.0.0.0/8 there is an address for every number up to 16 million.
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            yield address + dice.choice(("", ":8448", ":18448"))
        else:
            name = f"{dice.choice(_WORDS)}{dice.choice(('', '-'))}{unique}"
            if dice.random() < 0.3:
                name = f"{dice.choice(_WORDS)}.{name}"
            port = dice.choice((":8448", ":443", ":8008")) if shape < 0.06 else ""
            yield f"{dice.choice(_PREFIXES)}{name}.{dice.choice(_SUFFIXES)}{port}"


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
        if not number:
            return digits


@frozen
class _Destination:
    name: str
    retry_last_ts: int | None
    retry_interval: int | None
    failure_ts: int | None
    delivered: int | None
    """The last successful stream ordering."""


class _Recipe:
    """Makes the rows, batch by batch."""

    def __init__(self, count: int, now_ms: int) -> None:
        self._dice = random.Random(_SEED + 1)  # noqa: S311
        self._count = count
        self._now_ms = now_ms
        self.rooms = [f"!{_base36(i)}room:{LOCAL_SERVER}" for i in range(count // 50)]
        # Moments at which much failed at once, and events that went out to many.
        self._outages = [self._age_ms() for _ in range(20)]
        self._events = [self._stream_ordering() for _ in range(20_000)]

    def _stream_ordering(self) -> int:
        return int(_LAST_STREAM_ORDERING * (1 - self._dice.random() ** 3)) or 1

    def _age_ms(self) -> int:
        """How long a destination has been failing: 2 minutes to 100 days."""
        shortest, longest = 2 * _MINUTE_MS, 100 * _DAY_MS
        if self._dice.random() < 0.5:
            return self._dice.randrange(14 * _DAY_MS, longest)
        exponent = self._dice.uniform(math.log(shortest), math.log(longest))
        return int(math.exp(exponent))

    def destinations(self) -> Iterator[list[_Destination]]:
        batch = []
        for name in names(self._count):
            batch.append(self._destination(name))
            if len(batch) == _BATCH:
                yield batch
                batch = []
        yield batch

    def _destination(self, name: str) -> _Destination:
        dice = self._dice
        kind = dice.random()
        delivered: int | None = None
        if kind < 0.06:
            if dice.random() < 0.7:
                delivered = self._delivered()
            return self._failing(name, delivered)
        if kind >= 0.20:
            delivered = self._delivered()
        # What has failed once and works again has 0, and what never failed has NULL.
        zero = 0 if dice.random() < 0.4 else None
        return _Destination(name, zero, zero, None, delivered)

    def _delivered(self) -> int:
        if self._dice.random() < 0.6:
            return self._dice.choice(self._events)
        return self._stream_ordering()

    def _failing(self, name: str, delivered: int | None) -> _Destination:
        dice = self._dice
        age = dice.choice(self._outages) if dice.random() < 0.1 else self._age_ms()
        interval = _FIRST_INTERVAL_MS
        while interval < age / 2 and interval < _LONGEST_INTERVAL_MS:
            interval = int(interval * 2 * dice.uniform(0.8, 1.4))
        interval = min(interval, _LONGEST_INTERVAL_MS)
        if dice.random() < 1 / 3:
            tried = interval + dice.randrange(interval)
        else:
            tried = dice.randrange(interval)
        tried = min(tried, age)
        return _Destination(
            name, self._now_ms - tried, interval, self._now_ms - age, delivered
        )

    def ledger(self, batch: list[_Destination]) -> Iterator[tuple[str, str, int]]:
        """Yield destination_rooms: few servers share most of the rooms."""
        dice = self._dice
        for destination in batch:
            if dice.random() < 0.55:
                continue
            rooms = min(int(dice.paretovariate(1.6)), len(self.rooms) // 4, 3000)
            failing = destination.failure_ts is not None
            waits = dice.random() < (0.6 if failing else 0.005)
            for room in {self._room() for _ in range(rooms or 1)}:
                ordering = self._stream_ordering()
                if destination.delivered is not None:
                    if waits and dice.random() < 0.7:
                        ordering = destination.delivered + dice.randrange(1, 500_000)
                    else:
                        ordering = min(ordering, destination.delivered)
                yield destination.name, room, ordering

    def _room(self) -> str:
        return self.rooms[int(len(self.rooms) * self._dice.random() ** 3)]


def fill(sink: Sink, count: int, now_ms: int) -> None:
    """Fill a fresh Synapse database.

    Args:
        sink: the database.
        count: how many destinations; at least 1000.
        now_ms: the time to which all times relate.
    """
    recipe = _Recipe(count, now_ms)
    dice = random.Random(_SEED + 2)  # noqa: S311
    members_left = min(200_000, count // 5)
    failing: list[str] = []
    alive: list[str] = []
    sink.insert(
        "rooms",
        ("room_id", "is_public", "creator", "room_version", "has_auth_chain_index"),
        ((r, "0", f"@u0:{LOCAL_SERVER}", "10", "1") for r in recipe.rooms),
    )
    for batch in recipe.destinations():
        sink.insert(
            "destinations",
            (
                *("destination", "retry_last_ts", "retry_interval", "failure_ts"),
                "last_successful_stream_ordering",
            ),
            (
                (d.name, d.retry_last_ts, d.retry_interval, d.failure_ts, d.delivered)
                for d in batch
            ),
        )
        ledger = list(recipe.ledger(batch))
        sink.insert(
            "destination_rooms", ("destination", "room_id", "stream_ordering"), ledger
        )
        members = [pair for pair in ledger if dice.random() < 0.2][:members_left]
        members_left -= len(members)
        _insert_members(sink, [(f"@m:{name}", room) for name, room, _ in members])
        failing += [d.name for d in batch if d.failure_ts is not None]
        alive += [d.name for d in batch if d.failure_ts is None][: _BATCH // 10]
    _insert_local_members(sink, dice, recipe.rooms)
    streamed = _insert_waiting(sink, dice, failing, count, now_ms)
    _insert_received(sink, dice, alive, min(100_000, count // 10), now_ms)
    sink.finish(streamed)


def _insert_members(sink: Sink, members: list[tuple[str, str]]) -> None:
    sink.insert(
        "current_state_events",
        ("event_id", "room_id", "type", "state_key", "membership"),
        (
            (f"$member-{user}-{room}", room, "m.room.member", user, "join")
            for user, room in members
        ),
    )


def _insert_local_members(sink: Sink, dice: random.Random, rooms: list[str]) -> None:
    members = [
        (f"@u{number}:{LOCAL_SERVER}", room)
        for number in range(_LOCAL_USERS)
        for room in {rooms[int(len(rooms) * dice.random() ** 3)] for _ in range(200)}
    ]
    _insert_members(sink, members)
    sink.insert(
        "local_current_membership",
        ("room_id", "user_id", "event_id", "membership"),
        ((room, user, f"$member-{user}-{room}", "join") for user, room in members),
    )


def _insert_waiting(
    sink: Sink, dice: random.Random, failing: list[str], count: int, now_ms: int
) -> int:
    """Insert what waits besides events; a tenth for names that have no row."""
    rows = min(5000, count // 100)

    def name(number: int) -> str:
        return f"unheard{number}.example" if number % 10 == 0 else dice.choice(failing)

    def ts() -> int:
        return now_ms - dice.randrange(20 * _DAY_MS)

    message = '{"edus":{"sender":"@u1:%s","type":"m.room.encrypted"},"pad":"%s"}'
    sink.insert(
        "device_federation_outbox",
        ("destination", "stream_id", "queued_ts", "messages_json", "instance_name"),
        (
            (name(i), i + 1, ts(), message % (LOCAL_SERVER, "x" * 300), "master")
            for i in range(rows)
        ),
    )
    sink.insert(
        "device_lists_outbound_pokes",
        ("destination", "stream_id", "user_id", "device_id", "sent", "ts"),
        (
            (name(i), i + 1, f"@u{i % 50}:{LOCAL_SERVER}", f"DEVICE{i % 7}", "0", ts())
            for i in range(rows)
        ),
    )
    return rows


def _insert_received(
    sink: Sink, dice: random.Random, alive: list[str], rows: int, now_ms: int
) -> None:
    sink.insert(
        "received_transactions",
        (
            *("transaction_id", "origin", "ts", "response_code", "response_json"),
            "has_been_referenced",
        ),
        (
            (
                *(str(1_700_000_000_000 + i), dice.choice(alive)),
                *(now_ms - dice.randrange(20 * _DAY_MS), 200, b'{"pdus":{}}', 0),
            )
            for i in range(rows)
        ),
    )
