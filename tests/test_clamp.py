# SPDX-License-Identifier: Apache-2.0
"""Backoffs that are longer than a given time are shortened."""

from typing import Any
from unittest import mock

import pytest
from module_case import ModuleTestCase
from parameterized import parameterized

from synapse_federation_admin.repair import cap_backoff as module

CLAMP = "/_synapse/admin/v2/federation/clamp"
HOUR_MS = 3_600_000


@pytest.mark.database
class ClampTestCase(ModuleTestCase):
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

    def clamp(self, **body: Any) -> Any:
        return self.ask("POST", CLAMP, content=body)

    def rows(self) -> dict[str, tuple[Any, ...]]:
        found = self.get_success(
            self.store.db_pool.simple_select_list(
                "destinations",
                None,
                ("destination", "retry_last_ts", "retry_interval", "failure_ts"),
            )
        )
        return {name: tuple(columns) for name, *columns in found}

    def audit(self) -> list[dict[str, Any]]:
        return self.get_json("/_synapse/admin/v2/federation/audit")["entries"]

    def test_clamp(self) -> None:
        """Only what is longer is shortened, and only its interval; the audit knows."""
        channel = self.clamp(max_retry_interval_ms=2 * HOUR_MS, reason="lowered")
        self.assertEqual(channel.code, 200, channel.result)
        self.assertEqual(
            channel.json_body, {"dry_run": False, "matched": 2, "changed": 2}
        )
        self.assertEqual(
            self.rows(),
            {
                **self.intervals,
                "long.example": (1000, 2 * HOUR_MS, 500),
                "longest.example": (2000, 2 * HOUR_MS, 700),
            },
        )
        (entry,) = self.audit()
        self.assertEqual((entry["action"], entry["outcome"]), ("clamp", "done"))
        self.assertEqual(entry["user_id"], "@admin:test")
        self.assertEqual(entry["reason"], "lowered")
        self.assertEqual(
            entry["details"], {"max_retry_interval_ms": 2 * HOUR_MS, "changed": 2}
        )
        # Again: nothing is left to do.
        body = self.clamp(max_retry_interval_ms=2 * HOUR_MS).json_body
        self.assertEqual((body["matched"], body["changed"]), (0, 0))

    def test_dry_run(self) -> None:
        """A dry run counts, and changes nothing."""
        body = self.clamp(max_retry_interval_ms=2 * HOUR_MS, dry_run=True).json_body
        self.assertEqual(body, {"dry_run": True, "matched": 2, "changed": 0})
        self.assertEqual(self.rows(), self.intervals)
        self.assertEqual(self.audit(), [])

    def test_caches(self) -> None:
        """Synapse knows at once, and so do other processes."""
        before = self.store.get_destination_retry_timings("longest.example")
        timings = self.get_success(before)
        assert timings is not None
        self.assertEqual(timings.retry_interval, 10**12)
        with mock.patch.object(
            type(self.store),
            "_send_invalidation_to_replication_bulk",
            autospec=True,
        ) as told:
            self.clamp(max_retry_interval_ms=1000)
        after = self.get_success(
            self.store.get_destination_retry_timings("longest.example")
        )
        assert after is not None
        self.assertEqual(after.retry_interval, 1000)
        names = {key for call in told.call_args_list for (key,) in call.args[3]}
        self.assertEqual(
            names,
            {"short.example", "equal.example", "long.example", "longest.example"},
        )

    def test_pieces(self) -> None:
        """It goes through the table in short transactions, and misses none."""
        with mock.patch.object(module, "_WINDOW", 2):
            body = self.clamp(max_retry_interval_ms=1000).json_body
        self.assertEqual(body["changed"], 4)

    def test_database_fails(self) -> None:
        """If the database fails: 500, and the audit says that it failed."""
        self.refuse_changes("destinations")
        channel = self.clamp(max_retry_interval_ms=1000)
        self.assertEqual(channel.code, 500)
        self.assertEqual(self.rows(), self.intervals)
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "failed")

    @parameterized.expand(
        [
            ({}, "'max_retry_interval_ms'"),
            ({"max_retry_interval_ms": 0}, "'max_retry_interval_ms'"),
            ({"max_retry_interval_ms": -1}, "'max_retry_interval_ms'"),
            ({"max_retry_interval_ms": 1.5}, "'max_retry_interval_ms'"),
            ({"max_retry_interval_ms": "1"}, "'max_retry_interval_ms'"),
            ({"max_retry_interval_ms": True}, "'max_retry_interval_ms'"),
            ({"max_retry_interval_ms": 10**20}, "'max_retry_interval_ms'"),
            ({"max_retry_interval_ms": 1, "dry_run": 1}, "'dry_run'"),
            ({"max_retry_interval_ms": 1, "dry-run": True}, "'dry-run'"),
            ({"max_retry_interval_ms": 1, "reason": 1}, "'reason'"),
        ]
    )
    def test_bad_body(self, body: Any, named: str) -> None:
        """A bad body is 400 M_INVALID_PARAM, naming the key; nothing is changed."""
        channel = self.clamp(**body)
        self.assertEqual(channel.code, 400)
        self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")
        self.assertIn(named, channel.json_body["error"])
        self.assertEqual(self.rows(), self.intervals)
