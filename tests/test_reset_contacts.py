# SPDX-License-Identifier: Apache-2.0
"""The contact after a reset, and what happens when there are many of them."""

import json
from unittest import mock

import pytest
from contact_case import ContactTestCase
from module_case import FAILING, NAME
from synapse.api.errors import HttpResponseException
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair import follow_up
from synapse_federation_admin.repair.contact import MAX_CONTACTS
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.wake import Wake

pytestmark = pytest.mark.database


class ResetContactsTestCase(ContactTestCase):
    """Who is contacted, and when."""

    def setUp(self) -> None:
        super().setUp()
        self.homeserver = Homeserver(self.hs.get_module_api())

    def test_answer_does_not_wait(self) -> None:
        """The reset is answered while the contact still hangs."""
        self.assertEqual(self.reset().code, 200)
        self.assertEqual([c[:2] for c in self.contacts], [(NAME, False)])
        self.assertEqual(self.timeouts_ms, [10_000])
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
        self.answer(ConnectError())
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
        self.answer(ConnectError())
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

    def test_log(self) -> None:
        """What a remote server puts into an error is logged escaped, and cut."""
        with self.assertLogs("synapse_federation_admin", "INFO") as logs:
            self.reset()
            said = {
                "errcode": "M_X",
                "error": "forged\n2026-01-01 \x1b[31m" + "x" * 9999,
            }
            body = json.dumps(said).encode()
            self.answer(HttpResponseException(403, "Forbidden", body))
        told = [line for line in logs.output if "forged" in line]
        # Of the contact, and of the audit.
        self.assertEqual(len(told), 2)
        for line in told:
            self.assertIn("forged\\n2026", line.replace("\\\\", "\\"))
            self.assertTrue(line.isprintable())
            self.assertLess(len(line), 1000)

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

    def test_reset_while_it_waits(self) -> None:
        """However often it is reset before its turn comes, it is contacted once."""
        follow_up_ = self.follow_up()
        for number in range(MAX_CONTACTS):
            start(follow_up_, f"host{number}.example")
        for _ in range(5):
            start(follow_up_, "other.example")
        self.wait(0.1)
        for number in range(MAX_CONTACTS):
            self.answer(which=number)
        self.answer()
        waited = [c[0] for c in self.contacts[MAX_CONTACTS:]]
        self.assertEqual(waited, ["other.example"])

    def test_many(self) -> None:
        """Thousands of resets make some dozens of background processes; all get on."""
        with (
            mock.patch.object(
                Homeserver,
                "run_in_background",
                autospec=True,
                side_effect=Homeserver.run_in_background,
            ) as run,
            mock.patch.object(Homeserver, "has_other_processes", True),
            mock.patch.object(Homeserver, "wake_elsewhere"),
        ):
            wake = Wake(self.homeserver)
            follow_up_ = FollowUp(self.homeserver, wake, contact_timeout_ms=10_000)
            for number in range(2_000):
                wake.everywhere(f"host{number}.example")
                start(follow_up_, f"host{number}.example")
            self.assertLess(run.call_count, MAX_CONTACTS + 10)
            self.wait(0.1)
            which = 0
            while which < len(self.contacts):
                self.contacts[which][2].errback(ConnectError())
                which += 1
                if which == len(self.contacts):
                    self.wait(0.1)
            self.assertLess(run.call_count, MAX_CONTACTS + 10)
        self.assertEqual(len({c[0] for c in self.contacts}), 2_000)

    def test_cancelled(self) -> None:
        """A contact that is cancelled is over, and the others get their turn."""
        follow_up_ = self.follow_up()
        for number in range(MAX_CONTACTS + 1):
            start(follow_up_, f"host{number}.example")
        self.wait(0.1)
        self.answer(CancelledError(), which=0)
        self.answer(which=1)
        start(follow_up_, "host0.example")
        self.wait(0.1)
        self.assertEqual(
            [c[0] for c in self.contacts[MAX_CONTACTS:]],
            [f"host{MAX_CONTACTS}.example", "host0.example"],
        )

    def test_bounded(self) -> None:
        """Beyond a bound they are reset, but not contacted; that is logged once.

        Those within the bound are followed as ever.
        """
        others = ["other0.example", "other1.example"]
        with (
            mock.patch.object(follow_up, "MAX_FOLLOWED", 1),
            self.assertLogs("synapse_federation_admin", "WARNING") as logs,
        ):
            self.reset()
            for name in others:
                self.add_destination(name, *FAILING)
                self.assertEqual(self.reset(name).code, 200)
                self.assertEqual(self.row(name), (0, 0, None, 7))
            self.assertEqual([c[0] for c in self.contacts], [NAME])
            self.fail(9_000)
            self.answer(ConnectError())
            self.wait(1)
        self.assertEqual(self.row(), (9_000, 600_000, 500, 7))
        self.assertEqual(len(logs.output), 1)

    def follow_up(self) -> FollowUp:
        return FollowUp(
            self.homeserver, Wake(self.homeserver), contact_timeout_ms=10_000
        )


def start(follow_up_: FollowUp, name: str) -> None:
    follow_up_.start(name, failing_since_ts=500, delivered=7)
