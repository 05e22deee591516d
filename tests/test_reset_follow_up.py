# SPDX-License-Identifier: Apache-2.0
"""What follows a reset: what the contact, and attempts from before it, may do."""

from unittest import mock

import pytest
from contact_case import ContactTestCase
from module_case import NAME
from synapse.module_api.errors import SynapseError
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError

from synapse_federation_admin.homeserver.retry_timings import RetryTimings
from synapse_federation_admin.repair.follow_up import FollowUp

pytestmark = pytest.mark.database


class FollowUpTestCase(ContactTestCase):
    """What becomes of the row."""

    def test_still_failing(self) -> None:
        """What is still down fails since when it failed before, with new timings."""
        self.reset_and_fail()

        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))
        timings = self.get_success(self.store.get_destination_retry_timings(NAME))
        assert timings is not None
        self.assertEqual(timings.failure_ts, 500)

    def test_still_failing_stored_late(self) -> None:
        """Synapse may store the failure some seconds after the contact has failed."""
        self.reset()
        self.answer(ConnectError())
        self.wait(5)
        self.fail(9_000)
        self.wait(10)

        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))

    def test_sender_gives_up_much_later(self) -> None:
        """A sender's attempt that began with the cleared row cannot undo it for good.

        With Synapse's defaults such an attempt takes up to 25 minutes.
        """
        self.reset_and_fail()

        self.wait(20 * 60)
        self.fail(90_000)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))
        self.wait(31)
        self.assertEqual(self.row(), (90_000, 600_000, 500, 7))

    def test_ends(self) -> None:
        """Later than that a new failure is a new one."""
        self.reset_and_fail()
        self.wait(30 * 60)

        self.fail(90_000)
        self.wait(60)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))

    def test_recovers(self) -> None:
        """Once it has recovered for two minutes, a new failure is a new one."""
        self.reset_and_fail()
        self.recover()
        self.wait(200)

        self.fail(90_000)
        self.wait(60)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))

    def test_reset_elsewhere(self) -> None:
        """A reset on another process, which clears the row, too, loses nothing."""
        self.reset_and_fail()
        self.recover()
        self.wait(70)

        self.fail(90_000)
        self.wait(31)
        self.assertEqual(self.row(), (90_000, 600_000, 500, 7))

    def test_recovers_between_looks(self) -> None:
        """Once it has got something a new failure is a new one, however soon."""
        self.reset_and_fail()
        self.wait(600)
        self.recover()
        self.deliver(50)
        self.wait(60)

        self.fail(700_000)
        self.wait(40)
        self.assertEqual(self.row(), (700_000, 600_000, 700_000, 50))

    def test_fails_twice_after_it_has_answered(self) -> None:
        """What has answered and taken events fails since its last failure."""
        self.reset()
        self.answer()
        self.deliver(50)
        self.wait(600)
        self.fail(600_000)
        self.wait(31)
        self.recover()
        self.answer()
        self.deliver(60)
        self.wait(300)

        self.fail(900_000)
        self.wait(60)
        self.assertEqual(self.row(), (900_000, 600_000, 900_000, 60))

    def test_row_made_anew(self) -> None:
        """A row that was deleted, and made anew by a failure, fails since then."""
        self.reset_and_fail()
        self.run_sql(f"DELETE FROM destinations WHERE destination = '{NAME}'")
        self.wait(20)

        self.fail(90_000)
        self.wait(31)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, None))

    def test_second_reset_after_recovery(self) -> None:
        """A second reset restores the time of the new failure, not of the old one."""
        self.reset()
        self.answer()
        self.deliver(50)
        self.wait(20 * 60)
        self.fail(1_200_000)
        self.assertEqual(self.reset().code, 200)
        self.fail(1_201_000)
        self.answer(ConnectError())
        self.wait(10)
        self.assertEqual(self.row(), (1_201_000, 600_000, 1_200_000, 50))

    def test_contact_waits_for_long(self) -> None:
        """What a contact leads to is seen, however long that had to wait."""
        self.reset()
        self.wait(31 * 60)
        self.answer(ConnectError())
        self.wait(60)

        self.fail(1_900_000)
        self.wait(31)
        self.assertEqual(self.row(), (1_900_000, 600_000, 500, 7))

    def test_second_reset_hangs(self) -> None:
        """A second reset, whose contact hangs for long, loses nothing."""
        self.reset_and_fail()
        self.assertEqual(self.reset().code, 200)
        self.wait(300)

        self.fail(90_000)
        self.answer(ConnectError())
        self.wait(1)
        self.assertEqual(self.row(), (90_000, 600_000, 500, 7))

    def test_second_reset_keeps_the_oldest(self) -> None:
        """A reset before the old time was restored does not lose it either."""
        self.reset()
        self.fail(9_000)
        self.assertEqual(self.reset().code, 200)
        self.answer(ConnectError())
        self.fail(10_000)
        self.answer(ConnectError())
        self.wait(1)
        self.assertEqual(self.row(), (10_000, 600_000, 500, 7))

    def test_database_fails(self) -> None:
        """A database that fails for a while does not end the work."""
        with mock.patch.object(
            RetryTimings, "restore_failure_ts", side_effect=OSError("no database")
        ):
            self.reset_and_fail()
            self.wait(60)
        self.assertEqual(self.row(), (9_000, 600_000, 9_000, 7))
        self.wait(31)
        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))

    def test_survives(self) -> None:
        """An error that nobody has thought of is logged, and does not end the work."""
        with (
            mock.patch.object(FollowUp, "_conclude", side_effect=RuntimeError("bug")),
            self.assertLogs("synapse_federation_admin", "ERROR") as logs,
        ):
            self.reset_and_fail()
        self.assertEqual(len(logs.output), 1)
        self.wait(60)

        self.fail(90_000)
        self.wait(31)
        self.assertEqual(self.row(), (90_000, 600_000, 500, 7))

    def test_shutdown(self) -> None:
        """When Synapse shuts down, which cancels what runs, the work ends, unlogged."""
        with (
            mock.patch.object(
                RetryTimings, "restore_failure_ts", side_effect=CancelledError
            ) as look,
            self.assertNoLogs("synapse_federation_admin", "WARNING"),
        ):
            self.reset_and_fail()
            self.wait(60)
        look.assert_called_once()

    def test_contact_is_cancelled(self) -> None:
        """A contact that is cancelled does not lose the old time."""
        self.reset()
        self.fail(9_000)
        self.answer(CancelledError())
        self.wait(1)
        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))

    def test_answers_well(self) -> None:
        """What has answered is woken again, and asked no more."""
        self.reset()
        with mock.patch.object(
            self.hs.get_notifier(), "notify_remote_server_up"
        ) as notify:
            self.answer()
        notify.assert_called_once_with(NAME)
        self.wait(3600)
        self.assertEqual(len(self.contacts), 1)
        self.assertEqual(self.row(), (0, 0, None, 7))

    def test_attempt_from_before(self) -> None:
        """A backoff that an attempt from before the reset stores is taken back.

        By Synapse's own limiter, after one more contact in spite of the backoff.
        """
        self.reset()
        self.answer()
        self.fail(9_000)
        self.wait(31)
        self.assertEqual([c[1] for c in self.contacts], [False, True])
        self.recover()
        self.answer()
        self.wait(3600)
        self.assertEqual(len(self.contacts), 2)
        self.assertEqual(self.row(), (0, 0, None, 7))

    def test_slow(self) -> None:
        """What is too slow for the contact, but takes events, gets out of backoff.

        By Synapse's own limiter, after one more contact, for which it has a minute.
        """
        self.reset()
        self.fail(9_000)
        self.answer(ConnectError())
        self.wait(5)
        self.deliver(50)
        self.wait(31)
        self.assertEqual([c[1] for c in self.contacts], [False, True])
        self.assertEqual(self.timeouts_ms, [10_000, 60_000])
        self.recover()
        self.answer()
        self.wait(3600)
        self.assertEqual(len(self.contacts), 2)
        self.assertEqual(self.row(), (0, 0, None, 50))

    def test_slow_and_goes_down(self) -> None:
        """If it does not answer that one either, it is left to its backoff."""
        self.reset()
        self.answer(ConnectError())
        self.deliver(50)
        self.fail(90_000)
        self.wait(31)
        self.answer(ConnectError())
        self.wait(3600)
        self.assertEqual(len(self.contacts), 2)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 50))

    def test_answers_but_takes_nothing(self) -> None:
        """What answers our request but not those of a sender is left to its backoff.

        It has been failing since when it failed before.
        """
        self.reset()
        self.answer()
        self.fail(9_000)
        self.wait(31)
        self.recover()
        self.answer()
        self.fail(10_000)
        self.wait(120)
        self.assertEqual(len(self.contacts), 2)
        self.assertEqual(self.row(), (10_000, 600_000, 500, 7))

    def test_answers_and_goes_down(self) -> None:
        """What has answered and then goes down fails since then."""
        self.reset()
        self.answer()
        self.fail(90_000)
        self.wait(31)
        self.answer(ConnectError())
        self.wait(120)
        self.assertEqual(len(self.contacts), 2)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))

    def test_answers_with_an_error(self) -> None:
        """An answer that Synapse does not back off for leaves the row cleared."""
        self.reset()
        self.answer(SynapseError(404, "Unrecognized"))
        self.wait(200)
        self.assertEqual(self.row(), (0, 0, None, 7))

        self.fail(90_000)
        self.wait(60)
        self.assertEqual(self.row(), (90_000, 600_000, 90_000, 7))
