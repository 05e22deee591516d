# SPDX-License-Identifier: Apache-2.0
"""What follows a reset: the contact, and what attempts from before it may do."""

from typing import Any
from unittest import mock

import pytest
from module_case import FAILING, NAME, ResetTestCase
from twisted.internet.defer import Deferred

from synapse_federation_admin.homeserver import Homeserver, SynapseError
from synapse_federation_admin.repair import follow_up
from synapse_federation_admin.repair.contact import MAX_CONTACTS


@pytest.mark.database
class ContactTestCase(ResetTestCase):
    """What follows from the contact. The network itself is in the end-to-end tests."""

    config: dict[str, Any] = {}

    def setUp(self) -> None:
        super().setUp()
        # The destination, whether its backoff was to be ignored, and the answer.
        self.contacts: list[tuple[str, bool, Deferred[Any]]] = []
        patcher = mock.patch.object(Homeserver, "contact", self.contact)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.add_destination(NAME, *FAILING)

    def contact(
        self, destination: str, *, timeout_ms: int, ignore_backoff: bool
    ) -> "Deferred[Any]":
        """Stand in for the network: answers when the test says so."""
        self.assertEqual(timeout_ms, 10_000)
        answer: Deferred[Any] = Deferred()
        self.contacts.append((destination, ignore_backoff, answer))
        return answer

    def reset(self, name: str = NAME, **kwargs: Any) -> Any:
        """Reset, and let the contact begin."""
        channel = super().reset(name, **kwargs)
        self.wait(0.05)
        return channel

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps in which background processes get on."""
        self.pump(seconds / 100)

    def fail(self, failure_ts: int) -> None:
        """Have Synapse store a failure, as its retry limiter does it."""
        self.get_success(
            self.store.set_destination_retry_timings(
                NAME, failure_ts, failure_ts, 600_000
            )
        )

    def recover(self) -> None:
        """Have Synapse store that it got through, as its retry limiter does it."""
        self.get_success(self.store.set_destination_retry_timings(NAME, None, 0, 0))

    def answer(self, error: Exception | None = None, which: int = -1) -> None:
        """End the contact that is under way."""
        deferred = self.contacts[which][2]
        if error is None:
            deferred.callback({"server": {"name": "Fake", "version": "1"}})
        else:
            deferred.errback(error)
        self.wait(0.01)

    def reset_and_fail(self) -> None:
        """Reset what then turns out to be down."""
        self.assertEqual(self.reset().code, 200)
        self.fail(9_000)
        self.answer(OSError("refused"))
        self.wait(1)

    def test_answer_does_not_wait(self) -> None:
        """The reset is answered while the contact still hangs."""
        self.assertEqual(self.reset().code, 200)
        self.assertEqual([c[:2] for c in self.contacts], [(NAME, False)])
        self.answer()
        self.assertEqual(self.row(), (0, 0, None, 7))

    def test_one_at_a_time(self) -> None:
        """Resets during a contact lead to one more contact after it, and no more.

        That one asks in spite of the backoff which the first has led to.
        """
        for _ in range(5):
            self.add_destination(NAME, *FAILING)
            self.assertEqual(self.reset().code, 200)
        self.assertEqual(len(self.contacts), 1)

        self.fail(9_000)
        self.answer(OSError("refused"))
        self.assertEqual([c[1] for c in self.contacts], [False, True])
        self.recover()
        self.answer()
        self.wait(3600)
        self.assertEqual(len(self.contacts), 2)

    def test_impatient(self) -> None:
        """However often it is reset, what is down ends up in backoff.

        Whatever cleared the row last, the contact that follows it puts it back.
        """
        self.reset()
        self.add_destination(NAME, *FAILING)
        self.reset()
        self.answer(OSError("timeout"))
        self.assertEqual([c[1] for c in self.contacts], [False, False])

    def test_bounded_contacts(self) -> None:
        """Resets of many destinations lead to so many contacts at once, and no more."""
        for number in range(MAX_CONTACTS + 2):
            self.add_destination(f"host{number}.example", *FAILING)
            super().reset(f"host{number}.example")
        self.wait(0.1)
        self.assertEqual(len(self.contacts), MAX_CONTACTS)

        self.answer(which=0)
        self.assertEqual(len(self.contacts), MAX_CONTACTS + 1)

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
        self.answer(OSError("refused"))
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

    def test_second_reset_hangs(self) -> None:
        """A second reset, whose contact hangs for long, loses nothing."""
        self.reset_and_fail()
        self.assertEqual(self.reset().code, 200)
        self.wait(300)

        self.fail(90_000)
        self.answer(OSError("timeout"))
        self.wait(1)
        self.assertEqual(self.row(), (90_000, 600_000, 500, 7))

    def test_second_reset_keeps_the_oldest(self) -> None:
        """A reset before the old time was restored does not lose it either."""
        self.reset()
        self.fail(9_000)
        self.assertEqual(self.reset().code, 200)
        self.answer(OSError("refused"))
        self.fail(10_000)
        self.answer(OSError("refused"))
        self.wait(1)
        self.assertEqual(self.row(), (10_000, 600_000, 500, 7))

    def test_database_fails(self) -> None:
        """A database that fails for a while does not end the work."""
        with mock.patch.object(
            Homeserver, "restore_failure_ts", side_effect=OSError("no database")
        ):
            self.reset_and_fail()
            self.wait(60)
        self.assertEqual(self.row(), (9_000, 600_000, 9_000, 7))
        self.wait(31)
        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))

    def test_one_background_process(self) -> None:
        """However often a destination fails and recovers, one process follows it."""
        with mock.patch.object(
            Homeserver,
            "run_in_background",
            autospec=True,
            side_effect=Homeserver.run_in_background,
        ) as run:
            for _ in range(5):
                self.add_destination(NAME, *FAILING)
                self.reset()
                self.answer()
                self.wait(5)
        started = [call.args[1] for call in run.call_args_list]
        self.assertEqual(started.count("federation_admin_follow_up"), 1)
        self.assertEqual(started.count("federation_admin_contact"), 5)

    def test_bounded_memory(self) -> None:
        """Beyond a bound the destinations that were reset first are let go of."""
        with mock.patch.object(follow_up, "MAX_FOLLOWED", 1):
            self.reset()
            self.fail(9_000)
            self.add_destination("other.example", *FAILING)
            self.reset("other.example")
            self.answer(OSError("refused"), which=0)
            self.wait(60)
        self.assertEqual(self.row(), (9_000, 600_000, 9_000, 7))

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
        self.answer(OSError("refused"))
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

    def test_log(self) -> None:
        """What a remote server puts into an error is logged escaped, and cut."""
        with self.assertLogs("synapse_federation_admin", "INFO") as logs:
            self.reset()
            self.answer(OSError("forged\n2026-01-01 line \x1b[31m" + "x" * 10_000))
        (line,) = logs.output
        self.assertIn("forged\\n2026", line)
        self.assertTrue(line.isprintable())
        self.assertLess(len(line), 600)
