# SPDX-License-Identifier: Apache-2.0
"""v1's reset_connection: what it answers and what it writes, on both databases."""

from typing import Any
from unittest import mock

import pytest
from module_case import DESTINATIONS, FAILING, NAME, V2, ResetTestCase

from synapse_federation_admin.homeserver.homeserver import Homeserver


@pytest.mark.database
class AnswersTestCase(ResetTestCase):
    """The answers, and the row afterwards."""

    def assert_answer(self, channel: Any, code: int, errcode: str, error: str) -> None:
        """Check an error, to the letter."""
        self.assertEqual(channel.code, code)
        self.assertEqual(channel.json_body, {"errcode": errcode, "error": error})

    def test_any_body(self) -> None:
        """Any body will do: 200 `{}`, and the timings are cleared.

        JSON that is wrong is in test_bad_input.
        """
        for body, content_type in (
            (b"", None),
            (b"{}", None),
            (b"a=b&c", "application/x-www-form-urlencoded"),
            (b"no boundary", "multipart/form-data"),
            (b"no boundary", "multipart/form-data; boundary=x"),
        ):
            self.add_destination(NAME, *FAILING)
            headers = [("Content-Type", content_type)] if content_type else None
            channel = self.reset(content=body, custom_headers=headers)
            self.assertEqual(channel.code, 200, (body, channel.result))
            self.assertEqual(channel.json_body, {})
            self.assertEqual(self.row(), (0, 0, None, 7))

    def test_caches(self) -> None:
        """What is failing by the table, or by Synapse's cache alone, is cleared.

        Synapse's own view is cleared with it: then there is nothing to reset.
        """
        for cached, row in ((5, None), (5, ()), (None, FAILING)):
            self.run_sql("DELETE FROM destinations")
            if cached:
                self.store_failure(ts=cached)
            self.assertEqual(self.timings() is not None, cached is not None)
            if row is not None:
                self.add_destination(NAME, *row)
            self.assertEqual(self.reset().code, 200, (cached, row))
            self.assertIsNone(self.timings())
            self.assertFalse(self.row()[0])
            self.assertEqual(self.reset().code, 400)

    def test_counts(self) -> None:
        """Where the summary's counts are kept, a reset has them counted anew."""
        self.add_destination(NAME, *FAILING)

        def total() -> object:
            return self.get_json(f"{V2}/summary")["total"]

        with mock.patch("synapse_federation_admin.destinations.costly._CHEAP_MS", 0):
            self.assertEqual(total(), 1)
            self.add_destination("other.example")
            self.assertEqual(total(), 1)
            self.assertEqual(self.reset().code, 200)
            self.assertEqual(total(), 2)

    def test_not_failing(self) -> None:
        """What is not failing is 400 M_UNKNOWN, and stays as it was."""
        for last_ts, interval in ((None, None), (0, 0), (0, 50)):
            self.add_destination(NAME, last_ts, interval)
            self.assert_answer(
                self.reset(),
                400,
                "M_UNKNOWN",
                "The retry timing does not need to be reset for this destination.",
            )
            self.assertEqual(self.row(), (0, interval or 0, None, None))

    def test_unknown(self) -> None:
        """An unknown destination is 404, and is not made known by that."""
        unknown = self.reset("unknown.example")
        self.assert_answer(unknown, 404, "M_NOT_FOUND", "Unknown destination")
        self.assertEqual(self.get_json(DESTINATIONS)["total"], 0)

    def test_database_error(self) -> None:
        """A database that refuses any of the changes is a 500; nothing has changed.

        On PostgreSQL the change for the caches of other processes is one of them.
        """
        tables = ["destinations"]
        if self.is_postgres:
            tables.append("cache_invalidation_stream_by_instance")
        for table in tables:
            self.add_destination(NAME, *FAILING)
            self.refuse_changes(table)

            failed = self.reset()
            self.assert_answer(failed, 500, "M_UNKNOWN", "Internal server error")
            self.assertEqual(self.row(), (1000, 2000, 500, 7))
            self.accept_changes(table)

    def test_no_server_name(self) -> None:
        """A row whose name is no server's is cleared; there is nobody to be woken."""
        long = f"{'a' * 64}.example"
        for name in (
            "two\nlines",
            "a b",
            "host:port",
            "[::1",
            "\x1b[31m",
            long,
            "-a_.b",
        ):
            self.add_destination(name, *FAILING)
            with mock.patch.object(Homeserver, "wake") as wake:
                self.assertEqual(self.reset(name).code, 200)
            wake.assert_not_called()
            self.assertEqual(self.row(name), (0, 0, None, 7))

    def test_clears_before_it_wakes(self) -> None:
        """First the row is cleared, then this process is woken, then the others are.

        They are told of it behind the change of their caches, in one stream; and those
        without this module in Synapse's own way, when they have heard of that change.
        Without other processes nobody else is told.
        """
        for others in (True, False):
            self.add_destination(NAME, *FAILING)
            woken: list[tuple[str, int]] = []
            with (
                mock.patch.object(Homeserver, "has_other_processes", others),
                mock.patch.object(
                    self.hs.get_notifier(),
                    "notify_remote_server_up",
                    lambda name, woken=woken: woken.append((name, self.row()[0])),
                ),
                mock.patch.object(
                    self.store,
                    "_send_invalidation_to_replication",
                    autospec=True,
                    side_effect=self.store._send_invalidation_to_replication,
                ) as told,
                mock.patch.object(
                    self.hs.get_replication_command_handler(), "send_remote_server_up"
                ) as sent,
            ):
                self.reset()
                sent.assert_not_called()
                self.pump(0.2)
            self.assertEqual(woken, [(NAME, 0)])
            found = [call.args[1:] for call in told.call_args_list]
            cache, key = "get_destination_retry_timings", (NAME,)
            self.assertEqual(found[0], (cache, key))
            signal = "synapse_federation_admin.wake"
            self.assertEqual(found[1:], [(signal, key)] if others else [])
            self.assertEqual(sent.call_args_list, [mock.call(NAME)] if others else [])

    def test_is_woken(self) -> None:
        """Who is told by another process of the homeserver wakes its own sender."""
        with self.wakes() as woken:
            self.store._attempt_to_invalidate_cache(
                "synapse_federation_admin.wake", ("a", "b")
            )
        self.assertEqual(woken.call_args_list, [mock.call("a"), mock.call("b")])
