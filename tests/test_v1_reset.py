# SPDX-License-Identifier: Apache-2.0
"""v1's reset_connection: what it answers and what it writes, on both databases."""

from typing import Any
from unittest import mock

import pytest
from module_case import DESTINATIONS, ModuleTestCase
from parameterized import parameterized
from synapse.storage.database import LoggingTransaction
from synapse.storage.engines import PostgresEngine
from twisted.internet.defer import Deferred

from synapse_federation_admin import homeserver
from synapse_federation_admin.homeserver import Homeserver

NAME = "down.example"
FAILING = (1000, 2000, 500, 7)
HOUR_MS = 3_600_000


class ResetTestCase(ModuleTestCase):
    """POST destinations/<destination>/reset_connection, without a contact."""

    def reset(self, name: str = NAME, **kwargs: Any) -> Any:
        return self.ask(
            "POST", self.destination_path(name, "/reset_connection"), **kwargs
        )

    def row(self, name: str = NAME) -> tuple[int, int, int | None, int | None]:
        """Return a destination's times, as GET shows them."""
        body = self.get_json(self.destination_path(name))
        return (
            body["retry_last_ts"],
            body["retry_interval"],
            body["failure_ts"],
            body["last_successful_stream_ordering"],
        )


@pytest.mark.database
class AnswersTestCase(ResetTestCase):
    """The answers, and the row afterwards."""

    @parameterized.expand(
        [
            (b"",),
            (b"{}",),
            (b"{not json",),
            (b"\xff\x00",),
            (b"[1]",),
            (b"null",),
            (b"a=b&c", "application/x-www-form-urlencoded"),
            (b"no boundary", "multipart/form-data"),
            (b"no boundary", "multipart/form-data; boundary=x"),
        ]
    )
    def test_any_body(self, body: bytes, content_type: str | None = None) -> None:
        """Any body will do: 200 `{}`, and the timings are cleared."""
        self.add_destination(NAME, *FAILING)
        headers = [("Content-Type", content_type)] if content_type else None

        channel = self.reset(content=body, custom_headers=headers)

        self.assertEqual(channel.code, 200, channel.result)
        self.assertEqual(channel.json_body, {})
        self.assertEqual(self.row(), (0, 0, None, 7))

    def test_caches(self) -> None:
        """Synapse's own view is cleared with the row, and seen failing before it."""
        self.get_success(self.store.set_destination_retry_timings(NAME, 5, 10, 20))
        self.assertTrue(
            self.get_success(self.store.get_destination_retry_timings(NAME))
        )

        self.assertEqual(self.reset().code, 200)

        self.assertIsNone(
            self.get_success(self.store.get_destination_retry_timings(NAME))
        )

    def test_manual_update(self) -> None:
        """The table decides, where Synapse's cache knows nothing of the failure."""
        self.get_success(self.store.get_destination_retry_timings(NAME))
        self.add_destination(NAME, *FAILING)

        self.assertEqual(self.reset().code, 200)
        self.assertEqual(self.row(), (0, 0, None, 7))

    @parameterized.expand([(None, None), (0, 0), (0, 50)])
    def test_not_failing(self, last_ts: int | None, interval: int | None) -> None:
        """What is not failing is 400 M_UNKNOWN, and stays as it was."""
        self.add_destination(NAME, last_ts, interval)

        channel = self.reset()

        self.assertEqual(channel.code, 400)
        self.assertEqual(
            channel.json_body,
            {
                "errcode": "M_UNKNOWN",
                "error": "The retry timing does not need to be reset for this "
                "destination.",
            },
        )
        self.assertEqual(self.row(), (0, interval or 0, None, None))

    def test_twice(self) -> None:
        """The second of two resets finds nothing to reset."""
        self.add_destination(NAME, *FAILING)
        self.assertEqual([self.reset().code, self.reset().code], [200, 400])

    def test_unknown(self) -> None:
        """An unknown destination is 404, and is not made known by that."""
        channel = self.reset("unknown.example")

        self.assertEqual(channel.code, 404)
        self.assertEqual(
            channel.json_body,
            {"errcode": "M_NOT_FOUND", "error": "Unknown destination"},
        )
        self.assertEqual(self.get_json(DESTINATIONS)["total"], 0)

    def test_database_error(self) -> None:
        """A database that refuses the change is a 500, and the row is as it was."""
        self.add_destination(NAME, *FAILING)

        def refuse_updates(txn: LoggingTransaction) -> None:
            if isinstance(txn.database_engine, PostgresEngine):
                txn.execute(
                    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE 'disk full'; END $$"
                )
                txn.execute(
                    "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON destinations "
                    "FOR EACH ROW EXECUTE FUNCTION refuse()"
                )
            else:
                txn.execute(
                    "CREATE TRIGGER refuse BEFORE UPDATE ON destinations "
                    "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
                )

        self.get_success(self.store.db_pool.runInteraction("test", refuse_updates))

        channel = self.reset()

        self.assertEqual(channel.code, 500)
        self.assertEqual(
            channel.json_body,
            {"errcode": "M_UNKNOWN", "error": "Internal server error"},
        )
        self.assertEqual(self.row(), (1000, 2000, 500, 7))

    def test_no_contact(self) -> None:
        """With `contact_on_reset: false` nothing is asked of the destination."""
        self.add_destination(NAME, *FAILING)
        with mock.patch.object(Homeserver, "contact") as contact:
            self.reset()
            self.pump(1)
        contact.assert_not_called()

    def test_wakes_this_process(self) -> None:
        """The federation sender of this process is woken, after the row is cleared."""
        self.add_destination(NAME, *FAILING)
        seen = []

        def look(destination: str) -> None:
            # Without a deferred: the cache must be right at this very moment.
            self.store.get_destination_retry_timings.invalidate((destination,))
            seen.append(destination)

        with mock.patch.object(
            self.hs.get_notifier(), "notify_remote_server_up", side_effect=look
        ):
            self.reset()
        self.assertEqual(seen, [NAME])


@pytest.mark.database
class ContactTestCase(ResetTestCase):
    """What follows from the contact. The network itself is in the end-to-end tests."""

    config: dict[str, Any] = {}

    def setUp(self) -> None:
        super().setUp()
        self.contacts: list[tuple[bool, Deferred[Any]]] = []
        patcher = mock.patch.object(Homeserver, "contact", self.contact)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.add_destination(NAME, *FAILING)

    def contact(
        self, destination: str, *, timeout_ms: int, ignore_backoff: bool
    ) -> "Deferred[Any]":
        """Stand in for the network: answers when the test says so."""
        self.assertEqual((destination, timeout_ms), (NAME, 10_000))
        answer: Deferred[Any] = Deferred()
        self.contacts.append((ignore_backoff, answer))
        return answer

    def fail(self, failure_ts: int) -> None:
        """Have Synapse store a failure, as its retry limiter does it."""
        self.get_success(
            self.store.set_destination_retry_timings(
                NAME, failure_ts, failure_ts, 600_000
            )
        )

    def answer(self, error: Exception | None = None) -> None:
        """End the contact that is under way."""
        deferred = self.contacts[-1][1]
        if error is None:
            deferred.callback({"server": {"name": "Fake", "version": "1"}})
        else:
            deferred.errback(error)
        self.pump()

    def test_answer_does_not_wait(self) -> None:
        """The reset is answered while the contact still hangs."""
        self.assertEqual(self.reset().code, 200)
        self.assertEqual([c[0] for c in self.contacts], [False])
        self.answer()
        self.assertEqual(self.row(), (0, 0, None, 7))

    def test_one_at_a_time(self) -> None:
        """Resets during a contact lead to one more contact after it, and no more.

        That one asks in spite of the backoff which the first may have led to.
        """
        for _ in range(5):
            self.add_destination(NAME, *FAILING)
            self.assertEqual(self.reset().code, 200)
        self.assertEqual(len(self.contacts), 1)

        self.answer(OSError("refused"))
        self.assertEqual([c[0] for c in self.contacts], [False, True])
        self.answer()
        self.pump(60)
        self.assertEqual(len(self.contacts), 2)

    def test_still_failing(self) -> None:
        """What is still down fails since when it failed before, with new timings."""
        self.reset()
        self.fail(9_000)
        self.answer(OSError("refused"))
        self.pump(1)

        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))
        timings = self.get_success(self.store.get_destination_retry_timings(NAME))
        assert timings is not None
        self.assertEqual(timings.failure_ts, 500)

    def test_still_failing_stored_late(self) -> None:
        """Synapse may store the failure some seconds after the contact has failed."""
        self.reset()
        self.answer(OSError("refused"))
        self.pump(0.05)
        self.fail(9_000)
        self.pump(0.1)

        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))

    def test_sender_gives_up_much_later(self) -> None:
        """A sender's attempt that began with the cleared row cannot undo it for good.

        With Synapse's defaults such an attempt takes up to 25 minutes.
        """
        self.reset()
        self.fail(9_000)
        self.answer(OSError("refused"))
        self.pump(1)

        self.reactor.advance(20 * 60)
        self.fail(90_000)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))
        self.reactor.advance(31)
        self.pump(1)
        self.assertEqual(self.row(), (90_000, 600_000, 500, 7))

    def test_recovers_later(self) -> None:
        """Once it has recovered, a new failure is a new one."""
        self.reset()
        self.fail(9_000)
        self.answer(OSError("refused"))
        self.pump(1)
        self.get_success(self.store.set_destination_retry_timings(NAME, None, 0, 0))
        self.reactor.advance(31)
        self.pump(1)

        self.fail(90_000)
        self.reactor.advance(HOUR_MS / 1000)
        self.pump(1)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))

    def test_answers_well(self) -> None:
        """After a contact that succeeded, a new failure is a new one."""
        self.reset()
        self.answer()
        self.fail(90_000)
        self.reactor.advance(60)
        self.pump(1)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))

    def test_answers_with_an_error(self) -> None:
        """An answer that Synapse does not back off for leaves the row cleared."""
        self.reset()
        self.answer(homeserver.SynapseError(404, "Unrecognized"))
        self.reactor.advance(60)
        self.pump(1)
        self.assertEqual(self.row(), (0, 0, None, 7))

        self.fail(90_000)
        self.reactor.advance(60)
        self.pump(1)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))

    def test_second_reset_keeps_the_oldest(self) -> None:
        """A reset before the old time was restored does not lose it either."""
        self.reset()
        self.fail(9_000)
        self.assertEqual(self.reset().code, 200)
        self.answer(OSError("refused"))
        self.fail(10_000)
        self.answer(OSError("refused"))
        self.pump(1)
        self.assertEqual(self.row(), (10_000, 600_000, 500, 7))
