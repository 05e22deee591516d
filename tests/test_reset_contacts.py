# SPDX-License-Identifier: Apache-2.0
"""Who is contacted after a reset, and when."""

import json
from collections.abc import Callable
from unittest import mock

import pytest
from module_case import FAILING, NAME
from probe_case import ContactTestCase
from synapse.api.errors import HttpResponseException
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectionLost

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.federation import Federation
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.retry_timings import RetryTimings

# As it is where no test stands in for the network.
PROBE = Federation.probe


class ResetContactsTestCase(ContactTestCase):
    """Who is contacted, and when."""

    def reset_failing(self, name: str = NAME) -> None:
        self.add_destination(name, *FAILING)
        self.reset(name)

    def fill(self) -> None:
        """Have as many contacts under way as there may be."""
        for number in range(limits.CONTACTS):
            self.reset_failing(f"host{number}.example")
        self.assertEqual(len(self.probes), limits.CONTACTS)

    def test_answers(self) -> None:
        """The reset does not wait for the contact; who has answered is woken again."""
        self.reset()
        self.assertEqual((self.probed, self.despite_backoff), ([NAME], [False]))
        with self.wakes() as woken:
            self.answer()
        woken.assert_called_once_with(NAME)
        self.assertEqual(self.row(NAME), (0, 0, None, 7))

    def test_not_sent(self) -> None:
        """An answer is no connection where the sender was never started."""
        self.run_sql("DELETE FROM federation_stream_position")
        self.reset()
        self.answer()
        self.assertEqual(self.outcomes(), ["not_sent"])

    def test_one_at_a_time(self) -> None:
        """Each reset is followed by one contact, one after the other.

        One that finds it in backoff again asks all the same. All of the resets were
        followed by the failure.
        """
        for _ in range(3):
            self.reset_failing()
        self.assertEqual(len(self.probes), 1)
        self.fail(9_000)
        self.answer(ConnectError())
        self.assertEqual(self.despite_backoff, [False, True])
        self.wait(11)
        self.recover()
        self.answer()
        self.answer()
        self.assertEqual(self.despite_backoff, [False, True, False])
        self.wait(3600)
        self.assertEqual(len(self.probes), 3)
        self.assertEqual(self.outcomes(), ["still_failing"] * 3)

    def test_shutdown(self) -> None:
        """That Synapse closes its connections as it ends is no answer of theirs."""
        triggers: list[Callable[[], None]] = []
        reactor = self.hs.get_reactor()
        with mock.patch.object(
            reactor, "addSystemEventTrigger", lambda _, __, do: triggers.append(do)
        ):
            homeserver = Homeserver(self.hs.get_module_api())
        ends: tuple[type[Exception], ...] = (ConnectionLost, CancelledError)
        for expected in ends:
            with mock.patch.object(Federation, "send_empty", side_effect=ends[0]):
                asked = PROBE(homeserver.federation, NAME, timeout_ms=1000)
                self.get_failure(asked, expected)
            for ended in triggers:
                ended()

    def test_forgotten(self) -> None:
        """Who was forgotten meanwhile is not: a failure would bring it back."""
        self.reset()
        self.answer(ConnectError())
        self.run_sql(f"DELETE FROM destinations WHERE destination = '{NAME}'")
        self.wait(11)
        self.assertEqual(self.probed, [NAME])

    def test_others_get_their_turn(self) -> None:
        """A contact that is cancelled, or ended by a database error, strands nobody."""
        self.fill()
        waiting = ["a.example", "b.example", "c.example"]
        for name in waiting:
            self.reset_failing(name)
        broken = mock.patch.object(
            RetryTimings,
            "is_backing_off",
            side_effect=[OSError("no database"), False, False],
        )
        with broken, self.assertLogs("synapse.metrics", "ERROR"):
            self.answer(which=0)
            self.answer(CancelledError(), which=1)
        self.answer(which=2)
        self.assertEqual(self.probed[limits.CONTACTS :], waiting[1:])

    def test_log(self) -> None:
        """What a remote server puts into an error is logged escaped, and cut."""
        with self.assertLogs("synapse_federation_admin", "INFO") as logs:
            self.reset()
            said = {"errcode": "M_X", "error": "forged\n2026-01-01 \x1b[31m"}
            body = json.dumps(said).encode()
            self.answer(HttpResponseException(403, "Forbidden", body))
            self.fail(9_000)
            self.wait(3)
        told = [line for line in logs.output if "forged" in line]
        # Of the contact, and of the audit.
        self.assertEqual(len(told), 2)
        for line in told:
            self.assertIn("forged\\n2026", line.replace("\\\\", "\\"))
            self.assertTrue(line.isprintable())
            self.assertLess(len(line), 1000)

    def test_bounded(self) -> None:
        """Beyond a bound they are reset, but not contacted; that is logged."""
        with (
            mock.patch.object(limits, "WAITING_CONTACTS", 1),
            self.assertLogs("synapse_federation_admin", "WARNING") as logs,
        ):
            self.reset()
            self.reset_failing("other.example")
            self.assertEqual(self.row("other.example"), (0, 0, None, 7))
            self.assertEqual(self.probed, [NAME])
            self.fail(9_000)
            self.answer(ConnectError())
            self.wait(3)
        self.assertEqual(self.row(NAME), (9_000, 600_000, 500, 7))
        self.assertIn("other.example", "".join(logs.output))


@pytest.mark.database
class OneAtATimeTestCase(ContactTestCase):
    """With one contact at a time."""

    def setUp(self) -> None:
        with mock.patch.object(limits, "CONTACTS", 1):
            super().setUp()

    def test_database_away_before(self) -> None:
        """Who waits while the database is away keeps nobody from theirs."""
        other, is_away = "other.example", True
        self.add_destination(other, *FAILING)

        async def is_backing_off(_: RetryTimings, name: str) -> bool:
            if is_away and name == NAME:
                raise self.database_away
            return False

        with mock.patch.object(RetryTimings, "is_backing_off", is_backing_off):
            self.reset()
            self.assertEqual(self.probes, [])
            self.reset(other)
            self.assertEqual(self.probed, [other])
            self.answer()
            is_away = False
            self.wait(60)
        self.assertEqual(self.probed, [other, NAME])
        self.answer()
        self.assertEqual(self.outcomes(), ["connected"] * 2)
