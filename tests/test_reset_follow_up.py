# SPDX-License-Identifier: Apache-2.0
"""What follows a reset: the contact, and what it and older attempts may do."""

import json
from typing import Any
from unittest import mock

import pytest
from module_case import FAILING, NAME
from parameterized import parameterized
from probe_case import ANSWER, ContactTestCase
from synapse.api.errors import HttpResponseException
from synapse.module_api.errors import SynapseError
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.retry_timings import RetryTimings
from synapse_federation_admin.repair import follow_up
from synapse_federation_admin.repair.follow_up import FollowUp

pytestmark = pytest.mark.database

# How a contact may end.
ENDS: dict[str, Any] = {
    "answered": ANSWER,
    "down": ConnectError(),
    "unrecognized": SynapseError(404, "Unrecognized"),
    "cancelled": CancelledError(),
}

# What happens after the reset of a destination that has failed since 500 and has got
# event 7: how its contacts end, what Synapse stores, and the seconds that go by. Then
# when it failed last and since when it fails ("-": it does not), the last event that it
# has got, and how many contacts there were: each after the first in spite of a backoff.
STORIES = {
    "What is still down fails since when it failed before": (
        "fail:9000 down 1 -> 9000 500 7 1"
    ),
    "Synapse may store the failure some seconds after the contact has failed": (
        "down 5 fail:9000 10 -> 9000 500 7 1"
    ),
    "A sender's attempt that began before may end up to 25 minutes later": (
        "fail:9000 down 1200 fail:90000 31 -> 90000 500 7 1"
    ),
    "Later than that a new failure is a new one": (
        "fail:9000 down 1800 fail:90000 60 -> 90000 90000 7 1"
    ),
    "Once it has recovered for two minutes, a new failure is a new one": (
        "fail:9000 down 1 recover 200 fail:90000 60 -> 90000 90000 7 1"
    ),
    "A reset on another process, which clears the row, too, loses nothing": (
        "fail:9000 down 1 recover 70 fail:90000 31 -> 90000 500 7 1"
    ),
    "Once it has got something a new failure is a new one, however soon": (
        "fail:9000 down 600 recover deliver:50 60 fail:700000 40 -> 700000 700000 50 2"
    ),
    "What has answered and taken events fails since its last failure": (
        "answered deliver:50 600 fail:600000 31 recover answered deliver:60 300 "
        "fail:900000 60 -> 900000 900000 60 2"
    ),
    "A row that was deleted, and made anew by a failure, fails since then": (
        "fail:9000 down 1 delete 20 fail:90000 31 -> 90000 90000 - 1"
    ),
    "A second reset restores the time of the new failure, not of the old one": (
        "answered deliver:50 1200 fail:1200000 reset fail:1201000 down 10 "
        "-> 1201000 1200000 50 2"
    ),
    "What a contact leads to is seen, however long that had to wait": (
        "1860 down 60 fail:1900000 31 -> 1900000 500 7 1"
    ),
    "A second reset, whose contact hangs for long, loses nothing": (
        "fail:9000 down 1 reset 300 fail:90000 down 1 -> 90000 500 7 2"
    ),
    "A reset before the old time was restored does not lose it either": (
        "fail:9000 reset down fail:10000 down 1 -> 10000 500 7 2"
    ),
    "A contact that is cancelled does not lose the old time": (
        "fail:9000 cancelled 1 -> 9000 500 7 1"
    ),
    "What has answered is asked no more": "answered 3600 -> - - 7 1",
    "A backoff that an attempt from before the reset stores is taken back": (
        "answered fail:9000 31 recover answered 3600 -> - - 7 2"
    ),
    "What is too slow for the contact, but takes events, gets out of backoff": (
        "fail:9000 down 5 deliver:50 31 recover answered 3600 -> - - 50 2"
    ),
    "If it does not answer the second contact either, it is left to its backoff": (
        "down deliver:50 fail:90000 31 down 3600 -> 90000 90000 50 2"
    ),
    "What answers, but takes nothing of a sender, fails since when it did before": (
        "answered fail:9000 31 recover answered fail:10000 120 -> 10000 500 7 2"
    ),
    "What has answered and then goes down fails since then": (
        "answered fail:90000 31 down 120 -> 90000 90000 7 2"
    ),
    "An answer that Synapse does not back off for leaves the row cleared": (
        "unrecognized 200 -> - - 7 1"
    ),
    "What has so answered is followed no more": (
        "unrecognized 200 fail:90000 60 -> 90000 90000 7 1"
    ),
}


class FollowUpTestCase(ContactTestCase):
    """What becomes of the row."""

    def tell(self, events: str) -> None:
        """Let happen what a story tells."""
        for event in events.split():
            what, _, number = event.partition(":")
            if what in ENDS:
                self.answer(ENDS[what])
            elif what.isdigit():
                self.wait(int(what))
            elif what == "delete":
                self.run_sql(f"DELETE FROM destinations WHERE destination = '{NAME}'")
            else:
                getattr(self, what)(*([int(number)] if number else []))

    @parameterized.expand(STORIES.items())
    def test_story(self, proves: str, story: str) -> None:
        """The row, and what Synapse knows of it, are as the story says."""
        events, _, end = story.partition("->")
        self.reset()
        self.tell(events)
        *row, contacts = (None if word == "-" else int(word) for word in end.split())
        last_ts, _, failure_ts, delivered = self.row(NAME)
        self.assertEqual([last_ts or None, failure_ts, delivered], row, proves)
        timings = self.store.get_destination_retry_timings(NAME)
        self.assertEqual(
            getattr(self.get_success(timings), "failure_ts", None), failure_ts
        )
        self.assertEqual(len(self.probes), contacts)
        if "reset" not in events:
            self.assertEqual(self.despite_backoff, [False, True][:contacts])
            self.assertEqual(self.timeouts_ms, [10_000, 60_000][:contacts])

    @parameterized.expand(
        [
            (RetryTimings, "restore_failure_ts", OSError("no database")),
            (FollowUp, "_see_to", RuntimeError("bug")),
        ]
    )
    def test_survives(self, owner: type, method: str, error: Exception) -> None:
        """What goes wrong for a while is logged, and does not end the work."""
        with (
            mock.patch.object(owner, method, side_effect=error),
            self.assertLogs(follow_up.__name__, "ERROR"),
        ):
            self.reset()
            self.tell("fail:9000 down 20")
        self.tell("31 fail:90000 31")
        self.assertEqual(self.row(NAME), (90_000, 600_000, 500, 7))

    def test_shutdown(self) -> None:
        """When Synapse shuts down, which cancels what runs, the work ends, unlogged."""
        with (
            mock.patch.object(
                RetryTimings, "restore_failure_ts", side_effect=CancelledError
            ) as look,
            self.assertNoLogs("synapse_federation_admin", "WARNING"),
        ):
            self.reset()
            self.tell("fail:9000 down 60")
        look.assert_called_once()


class ResetContactsTestCase(ContactTestCase):
    """Who is contacted, and when."""

    def setUp(self) -> None:
        super().setUp()
        starts = mock.patch.object(
            Homeserver,
            "run_in_background",
            autospec=True,
            side_effect=Homeserver.run_in_background,
        )
        self.starts = starts.start()
        self.addCleanup(starts.stop)

    def started(self, desc: str) -> int:
        """Return how many background processes of a name have been started."""
        return [call.args[1] for call in self.starts.call_args_list].count(desc)

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
        with mock.patch.object(
            self.hs.get_notifier(), "notify_remote_server_up"
        ) as notify:
            self.answer()
        notify.assert_called_once_with(NAME)
        self.assertEqual(self.row(NAME), (0, 0, None, 7))

    def test_one_at_a_time(self) -> None:
        """Resets during a contact lead to one more contact after it, and no more.

        That one asks in spite of the backoff which the first has led to. Each of the
        resets has what came of it in its entry in the audit.
        """
        for _ in range(5):
            self.reset_failing()
        self.assertEqual(len(self.probes), 1)

        self.fail(9_000)
        self.answer(ConnectError())
        self.assertEqual(self.despite_backoff, [False, True])
        self.recover()
        self.answer()
        self.wait(3600)
        self.assertEqual(len(self.probes), 2)
        contacts = [entry["details"]["contact"] for entry in self.audit()]
        self.assertEqual([contact["error"] for contact in contacts], [None] * 5)

    def test_impatient(self) -> None:
        """However often it is reset, what is down ends up in backoff.

        Whatever cleared the row last, the contact that follows it puts it back.
        """
        self.reset()
        self.reset_failing()
        self.answer(ConnectError())
        self.assertEqual(self.despite_backoff, [False, False])

    def test_bounded_contacts(self) -> None:
        """So many are contacted at once; the others wait, and are contacted once each.

        However often they are reset before their turn comes, and by few processes.
        """
        self.fill()
        for _ in range(5):
            for name in ("a.example", "b.example"):
                self.reset_failing(name)
        which = 0
        while which < len(self.probes):
            self.answer(ConnectError(), which)
            self.wait(0.05)
            which += 1
        self.assertEqual(self.probed[limits.CONTACTS :], ["a.example", "b.example"])
        self.assertEqual(self.started("federation_admin_contact"), limits.CONTACTS)
        self.assertEqual(self.started("federation_admin_follow_up"), 1)

    def test_others_get_their_turn(self) -> None:
        """A contact that is cancelled, or ended by a database error, strands nobody."""
        self.fill()
        waiting = ["a.example", "b.example", "c.example"]
        for name in waiting:
            self.reset_failing(name)
        broken = mock.patch.object(
            RetryTimings, "is_backing_off", side_effect=OSError("no database")
        )
        with broken, self.assertLogs(follow_up.__name__, "ERROR"):
            self.answer(which=0)
            self.wait(0.02)
        self.answer(CancelledError(), which=1)
        for which in range(2, limits.CONTACTS):
            self.answer(which=which)
        self.wait(0.1)
        self.assertLess(set(self.probed[limits.CONTACTS :]), set(waiting))
        for name in waiting:
            self.reset_failing(name)
        self.assertEqual(set(self.probed[limits.CONTACTS :]), set(waiting))

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

    def test_bounded(self) -> None:
        """Beyond a bound they are reset, but not contacted; that is logged.

        Those within the bound are followed as ever.
        """
        with (
            mock.patch.object(limits, "FOLLOWED_RESETS", 1),
            self.assertLogs("synapse_federation_admin", "WARNING") as logs,
        ):
            self.reset()
            self.reset_failing("other.example")
            self.assertEqual(self.row("other.example"), (0, 0, None, 7))
            self.assertEqual(self.probed, [NAME])
            self.fail(9_000)
            self.answer(ConnectError())
            self.wait(1)
        self.assertEqual(self.row(NAME), (9_000, 600_000, 500, 7))
        self.assertIn("other.example", "".join(logs.output))
