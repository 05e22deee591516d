# SPDX-License-Identifier: Apache-2.0
"""A homeserver of which a test writes what was recorded, with times before now."""

from typing import Any

from module_case import V2, ModuleTestCase

from synapse_federation_admin.history.outages import Outages
from synapse_federation_admin.history.owners import owner_of
from synapse_federation_admin.homeserver.homeserver import Homeserver

LIST = f"{V2}/destinations"

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# 2026-11-24 12:00 UTC.
NOON = 1_795_521_600_000


class HistoryTestCase(ModuleTestCase):
    """Writes what was recorded, with times before now."""

    def setUp(self) -> None:
        # It would bring what is written here up to date.
        self.patch(Outages, "start", lambda _: None)
        # The harness lets a microsecond go by now and then; tests are to the ms.
        self.patch(Homeserver, "now_ms", lambda _: NOON)
        super().setUp()
        self.get_success(self.tables.ready())
        self.now = NOON

    def add_failing(self, name: str, kind: str | None, ago: int = HOUR) -> None:
        """Write a destination that fails, and its outage."""
        self.add_destination(name, self.now - MINUTE, HOUR, self.now - ago, 1)
        self.add_outage(name, ago, kinds=kind or "", last_kind=kind)

    def add_outage(
        self, name: str, begin: int, end: int | None = None, **values: Any
    ) -> None:
        """Write an outage, by how long ago it began and ended."""
        self.insert(
            "federation_admin_outages",
            destination=name,
            start_ts=self.now - begin,
            end_ts=None if end is None else self.now - end,
            **{"ended": None if end is None else "recovered", "kinds": "", **values},
        )

    def record_since(self, ago: int) -> None:
        self.insert("federation_admin_recording", only_row=1, since_ts=self.now - ago)

    def add_success(
        self, name: str, ago: int = MINUTE, worked: int = 0, **values: Any
    ) -> None:
        """Write when a destination last answered, and for how long it had by then."""
        last_ts = self.now - ago
        values = {"destination": name, "last_ts": last_ts, **values}
        owner, first_ts = owner_of(name), last_ts - worked
        self.insert(
            "federation_admin_successes", owner=owner, first_ts=first_ts, **values
        )

    def add_failure(
        self, name: str, kind: str, ago: int = MINUTE, **values: Any
    ) -> None:
        self.insert_failure(
            name,
            kind,
            **{
                "message": f"It is {kind}",
                "first_ts": self.now - 2 * ago,
                "last_ts": self.now - ago,
                "count": 3,
                "instance": "sender",
                **values,
            },
        )
