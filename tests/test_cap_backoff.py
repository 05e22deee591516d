# SPDX-License-Identifier: Apache-2.0
"""Backoffs that are longer than a given time are shortened."""

from functools import partial
from typing import Any
from unittest import mock

import pytest
from run_case import RunsTestCase

HOUR_MS = 3_600_000


@pytest.mark.database
@pytest.mark.one_synapse
class CapBackoffTestCase(RunsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.intervals = {
            "none.example": (None, None, None),
            "up.example": (0, 0, None),
            "short.example": (1000, HOUR_MS, 500),
            "equal.example": (1000, 2 * HOUR_MS, 500),
            "long.example": (1000, 2 * HOUR_MS + 1, 500),
            "longest.example": (2000, 10**12, 700),
            # Not failing: what is left in it means nothing.
            "odd.example": (0, 10**12, None),
        }
        for name, columns in self.intervals.items():
            self.add_destination(name, *columns)

    def rows(self) -> dict[str, tuple[Any, ...]]:
        rows = self.run_sql(
            "SELECT destination, retry_last_ts, retry_interval, failure_ts "
            "FROM destinations"
        )
        return {name: tuple(columns) for name, *columns in rows}

    def test_too_long(self) -> None:
        """A name too long for a server counts in no run, and in no dry run."""
        self.add_destination("a" * 262, 1000, 10**12, 500)
        self.add_destination("b" * 261, 1000, 10**12, 500)
        name = {"destination": "?" * 261 + "*"}
        for action, body in (
            ("cap_backoff", {"max_retry_interval_ms": 10**11}),
            ("reconnect", {"filter": name}),
            ("forget", {"filter": name, "force": True}),
        ):
            dry = self.post(action, **body, dry_run=True)
            if action == "cap_backoff":
                self.assertNotIn("a" * 262, dry.json_body["sample"])
            run = self.complete(action, **body, dry_run=False)
            self.assertEqual(dry.json_body["matched"], run["matched"], action)
            self.add_destination("b" * 261, 1000, 10**12, 500)

    def test_cap(self) -> None:
        """Only what is longer is shortened, and only its interval; the audit knows.

        A dry run counts as a run, and changes nothing.
        """
        options = {"max_retry_interval_ms": 2 * HOUR_MS}
        dry = self.post("cap_backoff", **options, dry_run=True).json_body
        sample = ["long.example", "longest.example"]
        self.assertEqual(dry, {"dry_run": True, "matched": 2, "sample": sample})
        self.assertEqual((self.rows(), self.audit()), (self.intervals, []))
        run = self.complete("cap_backoff", **options, reason="lowered")
        self.assertEqual((run["matched"], run["outcomes"]), (2, {"capped": 2}))
        self.assertEqual(run["options"], options)
        self.assertEqual(run["criteria"], {"all_failing": True})
        self.assertEqual(
            self.rows(),
            {
                **self.intervals,
                "long.example": (1000, 2 * HOUR_MS, 500),
                "longest.example": (2000, 2 * HOUR_MS, 700),
            },
        )
        (entry,) = self.audit("?destination=longest.example")
        self.assertEqual((entry["action"], entry["outcome"]), ("cap_backoff", "capped"))
        self.assertEqual((entry["run_id"], entry["reason"]), (run["id"], "lowered"))
        self.assertEqual(entry["details"], {"retry_interval": 10**12})
        # Again: nothing is left to do.
        self.assertEqual(self.complete("cap_backoff", **options)["matched"], 0)

    def test_recovers_meanwhile(self) -> None:
        """What is not longer any more when its turn comes stays as it is."""
        recover = partial(self.add_destination, "longest.example", 0, 0, None)
        with self.once_prepared(recover):
            run = self.complete("cap_backoff", max_retry_interval_ms=2 * HOUR_MS)
        self.assertEqual(run["outcomes"], {"capped": 1, "unchanged": 1})
        self.assertEqual(self.rows()["longest.example"], (0, 0, None))

    def test_caches(self) -> None:
        """Synapse knows at once, and so do other processes."""
        self.assertEqual(self.timings("longest.example").retry_interval, 10**12)
        with mock.patch.object(
            type(self.store),
            "_send_invalidation_to_replication_bulk",
            autospec=True,
        ) as told:
            self.complete("cap_backoff", max_retry_interval_ms=1000)
        self.assertEqual(self.timings("longest.example").retry_interval, 1000)
        names = {key for call in told.call_args_list for (key,) in call.args[3]}
        self.assertEqual(
            names,
            {"short.example", "equal.example", "long.example", "longest.example"},
        )
