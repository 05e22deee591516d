# SPDX-License-Identifier: Apache-2.0
"""What follows a reset: the contact, or what waits, and what comes of it."""

import errno
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
from module_case import FAILING, NAME, V2
from parameterized import parameterized
from probe_case import ANSWER, ContactTestCase
from synapse.api.errors import HttpResponseException, RequestSendFailed
from twisted.internet.error import ConnectError

from synapse_federation_admin.config import parse_config
from synapse_federation_admin.homeserver.background import Turn
from synapse_federation_admin.homeserver.federation import Federation
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.process import Process
from synapse_federation_admin.homeserver.retry_timings import RetryTimings
from synapse_federation_admin.homeserver.transactions import Transaction
from synapse_federation_admin.repair import follow_up
from synapse_federation_admin.repair.follow_up import FollowUp
from synapse_federation_admin.repair.housekeeping import Housekeeping
from synapse_federation_admin.repair.reset import ConnectionReset
from synapse_federation_admin.repair.wake import Wake
from synapse_federation_admin.storage.audit import Audit
from synapse_federation_admin.storage.runs import RunStore
from synapse_federation_admin.storage.schema import Tables, TablesUnusableError
from synapse_federation_admin.wording import outcomes

# This process has no descriptor left.
OUT = OSError(errno.EMFILE, "Too many open files")

TAKEN = {"pdus": {}}
TOO_LARGE = HttpResponseException(413, "Too large", b"{}")

# How a contact may end.
ENDS: dict[str, Any] = {"answered": ANSWER, "down": ConnectError(), "out": OUT}

# As it is where no test stands in for the network.
CONTACT = Federation.contact

# What happens after the reset of a destination that has failed since 500 and has got
# event 7: how its contacts end, what Synapse stores, that the sender's transaction is
# taken or refused, and the seconds that go by. Then when it failed last and since when
# it fails ("-": it does not), the last event that it has got, how many contacts there
# were, and the outcome of all resets.
STORIES = {
    "What is still down fails since when it failed before": (
        "fail:9000 down 3 -> 9000 500 7 1 still_failing"
    ),
    "Synapse may store the failure some seconds after the contact has failed": (
        "down 5 fail:9000 10 -> 9000 500 7 1 still_failing"
    ),
    "What takes an empty transaction is connected, where nothing waits": (
        "answered 3600 -> - - 7 1 connected"
    ),
    "What is connected fails since a later failure": (
        "answered 60 fail:60000 60 -> 60000 60000 7 1 connected"
    ),
    "A reset before the old time was restored does not lose it": (
        "fail:9000 reset down fail:10000 down 3 -> 10000 500 7 2 still_failing"
    ),
    "A contact that hangs for long loses nothing": (
        "1860 fail:1860000 down 60 -> 1860000 500 7 1 still_failing"
    ),
    "What this process had nothing left for is tried again": (
        "out 11 out 21 answered 3600 -> - - 7 3 connected"
    ),
    "Not for ever, and then the next real request tells": (
        "out 11 out 21 out 41 out 3600 -> - - 7 4 pending"
    ),
    "Who fails, and Synapse could not write it, is contacted again": (
        "down 11 fail:9000 down 20 -> 9000 500 7 2 still_failing"
    ),
    "That it fails is then not told as proven": (
        "out 11 out 21 out 41 out 5 fail:90000 60 -> 90000 500 7 4 internal"
    ),
}

# The same where something waits, which is not sent in these tests, or without contacts.
SENT_STORIES = {
    "What waits is the contact: if it is not taken, it fails since it did before": (
        "fail:9000 3 -> 9000 500 7 0 still_failing"
    ),
    "Synapse may try for 25 minutes before it is known": (
        "1500 fail:1500000 400 -> 1500000 500 7 0 still_failing"
    ),
    "What has taken an event is connected": "deliver:50 3 -> - - 50 0 connected",
    "What has taken an event, and fails, fails since then": (
        "deliver:50 fail:9000 3 -> 9000 9000 50 0 connected"
    ),
    "It is so hours later": (
        "36000 fail:36000000 200 -> 36000000 500 7 0 still_failing"
    ),
    "A day later nobody remembers": (
        "97200 prune fail:97200000 200 -> 97200000 97200000 7 0 interrupted"
    ),
    "What has not been heard of is pending": "3600 -> - - 7 0 pending",
    "What is refused may be told some seconds late": (
        "3 fail:3000 5 refused 30 -> 3000 500 7 0 refused"
    ),
    "A transaction of messages that nobody keeps is taken": (
        "taken 60 3600 fail:3660000 200 -> 3660000 3660000 7 0 connected"
    ),
}


class StoryTestCase(ContactTestCase):
    """What becomes of the row, and of the entry in the audit."""

    def tell(self, events: str) -> None:
        """Let happen what a story tells."""
        for event in events.split():
            what, _, number = event.partition(":")
            if what in ENDS:
                self.answer(ENDS[what])
            elif what.isdigit():
                self.wait(int(what))
            else:
                getattr(self, what)(*([int(number)] if number else []))

    def check(self, proves: str, story: str) -> None:
        """The row, what Synapse knows of it, and the audit are as the story says."""
        events, _, end = story.partition("->")
        self.reset()
        self.tell(events)
        *numbers, outcome = end.split()
        *row, contacts = (None if word == "-" else int(word) for word in numbers)
        last_ts, _, failure_ts, delivered = self.row(NAME)
        self.assertEqual([last_ts or None, failure_ts, delivered], row, proves)
        self.assertEqual(getattr(self.timings(), "failure_ts", None), failure_ts)
        self.assertEqual(len(self.probes), contacts)
        newest = 1 + sum(map(events.split().count, ("reset", "reconnect")))
        self.assertEqual(self.outcomes()[:newest], [outcome] * newest)

    def taken(self) -> None:
        self.send(None)

    def refused(self) -> None:
        self.send(TOO_LARGE)

    def prune(self) -> None:
        """Have it be too late for what has been pending for a day."""
        kept = {"keep_for_ms": 10**12, "outages_keep_for_ms": 10**12}
        keeper = Housekeeping(self.homeserver, self.tables, self.log, **kept)
        self.get_success(keeper.prune())

    def pending(self) -> None:
        """Check that it is not known yet what comes of it."""
        self.assertEqual(self.outcomes(), ["pending"])

    def send(
        self, error: Exception | None, *names: str, answer: Any = TAKEN, **parts: Any
    ) -> None:
        """Have the sender's transactions be taken, answered otherwise, or fail."""
        client = self.hs.get_federation_transport_client()
        # Below what observes it.
        with mock.patch.object(client.client, "put_json", side_effect=error) as put:
            put.return_value = answer
            for name in names or (NAME,):
                transaction = mock.Mock(
                    destination=name,
                    transaction_id="1",
                    **{"pdus": [], "edus": [{"edu_type": "m.typing"}], **parts},
                )
                sent = client.send_transaction(transaction)
                if error is None:
                    self.get_success(sent)
                else:
                    self.assertIs(self.get_failure(sent, Exception).value, error)


@pytest.mark.database
class StoriesTestCase(StoryTestCase):
    @parameterized.expand(STORIES.items())
    def test_contacted(self, proves: str, story: str) -> None:
        """With a contact, as nothing waits."""
        self.check(proves, story)

    @parameterized.expand(SENT_STORIES.items())
    def test_sent(self, proves: str, story: str) -> None:
        """With something that waits: it is sent, and nobody is contacted."""
        self.add_poke(NAME)
        self.check(proves, story)

    @parameterized.expand(
        [
            ("fail:9000 down 90", 500),
            ("fail:9000 3", 500),
            ("answered 60 fail:90000 90", 90_000),
        ]
    )
    def test_unwritten(self, events: str, failure_ts: int) -> None:
        """Where a reset cannot be written it is made all the same, and contacted.

        What is still down fails since when it did before, also where the tables cannot
        even be read; what has answered since does not.
        """
        self.refuse_changes("federation_admin_audit")
        unusable = mock.patch.object(
            Tables, "run", side_effect=TablesUnusableError("They are gone")
        )
        for stopped, said in (nullcontext(), 0), (unusable, 1):
            self.add_destination(NAME, *FAILING)
            with self.assertLogs("synapse_federation_admin") as logs, stopped:
                self.reset()
                self.assertEqual(self.row(NAME)[0], 0)
                self.tell(events)
            self.assertEqual(self.row(NAME)[2], failure_ts)
            lines = [line for line in logs.output if "Could not follow" in line]
            self.assertEqual(len(lines), said)
        self.assertEqual(self.audit(), [])

    def test_no_answer(self) -> None:
        """What is answered with 200 and is no answer is refused; nothing fails by it.

        Synapse takes it for a success, and does not back off.
        """
        self.add_poke(NAME)
        self.reset()
        no_json = RequestSendFailed(ValueError("no JSON"), can_retry=False)
        status = mock.PropertyMock(return_value=200)
        with mock.patch.object(Transaction, "status", status, create=True):
            self.send(no_json)
        self.tell("3")
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "refused")
        self.assertEqual(entry["details"]["refused"]["status"], 200)
        self.assertIn("HTTP 200, which is no answer", outcomes.why(entry["details"]))
        self.assertEqual(self.row(NAME)[0], 0)

    def test_no_homeserver(self) -> None:
        """So is JSON that no homeserver answers, after which nothing waits any more.

        Also where that is written later than what Synapse writes of it.
        """
        self.add_to_device(NAME)
        self.reset()
        note = Audit.note

        async def note_late(*args: Any) -> None:
            await self.homeserver.sleep_ms(1000)
            await note(*args)

        with mock.patch.object(Audit, "note", note_late):
            self.send(None, answer={"status": "ok"})
            # Synapse takes it for delivered.
            self.take(NAME)
            self.tell("3")
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "refused")
        self.assertEqual(entry["details"]["refused"]["status"], 200)

    def test_refused(self) -> None:
        """What the sender has told of the refusal is in the audit; then not again."""
        self.add_to_device(NAME)
        self.reset()
        edus = [{"edu_type": "m.direct_to_device"}, {"edu_type": "m.presence"}]
        for _ in range(2):
            self.send(TOO_LARGE, pdus=[1], edus=edus)
        self.tell("fail:9000 3")
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "refused")
        self.assertEqual(
            entry["details"]["refused"],
            {
                "status": 413,
                # It was stopped before it was encoded.
                "bytes": None,
                "pdus": 1,
                "edus": 2,
                "to_device_messages": 1,
            },
        )
        self.assertEqual(self.row(NAME)[2], 500)

    def test_our_own_fault(self) -> None:
        """What fails by a fault of this side is not put into backoff by the contact."""
        errors = {"out.example": OUT, "bug.example": KeyError("a bug")}
        self.answers.update(errors)
        with mock.patch.object(Federation, "contact", CONTACT):
            for name in errors:
                self.add_destination(name, *FAILING)
                self.reset(name)
            self.wait(60)
        self.assertEqual(
            self.probed, ["out.example", "bug.example"] + 2 * ["out.example"]
        )
        for name in errors:
            self.assertEqual(self.row(name), (0, 0, None, 7))

    def test_sender_has_nothing_left(self) -> None:
        """Nor is it told as a refusal that the sender had nothing left."""
        self.add_to_device(NAME)
        self.reset()
        self.send(OUT)
        self.tell("fail:9000 5")
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "internal")
        self.assertEqual(entry["details"]["error"]["kind"], "internal")
        self.assertNotIn("refused", entry["details"])
        self.assertEqual(self.row(NAME)[2], 500)

    def test_no_host_name(self) -> None:
        """A name that is no server's is cleared, and nothing is waited for."""
        self.add_destination("a_.example", *FAILING)
        self.reset("a_.example")
        self.assertEqual(self.outcomes()[0], "reset")
        self.assertEqual(self.probes, [])
        # Twisted connects to none with such a label, but Synapse tries.
        self.add_destination("a-.example", *FAILING)
        self.reset("a-.example")
        self.assertEqual(len(self.probes), 1)

    def test_restart(self) -> None:
        """The next process goes on where one has stopped."""
        self.wait(1)
        self.add_to_device(NAME)
        with mock.patch.object(FollowUp, "begin"):
            self.reset()
        self.tell("fail:9000 60")
        self.assertEqual(self.row(NAME)[2], 9000)
        runs = RunStore(self.homeserver, self.tables, self.log)
        FollowUp(self.homeserver, self.log, runs, *[mock.Mock()] * 2).start()
        self.tell("1")
        self.assertEqual(self.row(NAME)[2], 500)

    def test_away(self) -> None:
        """Where a process is away that has reset it, such as one that was renamed, the
        one that runs background tasks finds out what comes of it."""
        self.add_to_device(NAME)
        with mock.patch.object(Process, "instance_name", "renamed"):
            self.reset()
        self.add_instance("renamed", 590_000)
        self.tell("fail:9000 601 pending")
        self.add_instance("renamed", 610_000)
        self.tell("700")
        self.assertEqual(self.outcomes(), ["still_failing"])
        self.assertEqual(self.row(NAME)[2], 500)

    def test_contacted_after_restart(self) -> None:
        """A contact that the process did not make is made by the next, once.

        However many there are, they hold nobody up.
        """
        self.wait(1)
        with mock.patch.object(ConnectionReset, "_begin_contact"):
            self.reset()
        mocks = [mock.Mock(), mock.Mock(), mock.AsyncMock(return_value=[])]
        follow_up = FollowUp(self.homeserver, self.log, *mocks)
        for probed, turns in (([NAME], 1), ([NAME], 0)):
            with mock.patch.object(Turn, "end_if_long", autospec=True) as others:
                ConnectionReset(
                    parse_config({}),
                    self.homeserver,
                    mock.Mock(),
                    self.log,
                    Wake(self.homeserver),
                    follow_up,
                ).start()
                self.wait(1)
            self.assertEqual(others.await_count, turns)
            self.assertEqual(self.probed, probed)
            if self.outcomes()[0] == "pending":
                self.answer()
            self.assertEqual(self.outcomes()[0], "connected")

    def test_database_away(self) -> None:
        """What the contact met is written soon after the database is there again."""
        self.reset()
        with mock.patch.object(Tables, "run", side_effect=self.database_away):
            self.answer()
            self.wait(3)
        self.assertEqual(self.outcomes()[0], "pending")
        self.wait(6)
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "connected")
        self.assertIsNone(entry["details"]["contact"]["error"])

    def test_survives(self) -> None:
        """What goes wrong for a while is logged, and does not end the work."""
        with (
            mock.patch.object(
                RetryTimings, "failing_txn", side_effect=OSError("no database")
            ),
            self.assertLogs(follow_up.__name__, "ERROR"),
        ):
            self.reset()
            self.tell("fail:9000 down 20")
        self.tell("130")
        self.assertEqual(self.row(NAME), (9_000, 600_000, 500, 7))


@pytest.mark.database
class TakenTestCase(StoryTestCase):
    """What proves that a destination works ends what is pending of it."""

    config = {"contact_on_reset": False}

    def test_reconnected(self) -> None:
        """A reconnect that proves it ends an earlier reset, too."""
        story = "100 reconnect answered 3720 fail:3820000 200 -> "
        self.check("a later failure is new", f"{story}3820000 3820000 7 1 connected")

    def test_pruned(self) -> None:
        """Changes of devices that Synapse deletes were not taken."""
        for stream_id in (1, 2):
            self.add_poke(NAME, stream_id)
        self.reset()
        self.run_sql("DELETE FROM device_lists_outbound_pokes WHERE stream_id = 1")
        self.tell("60")
        self.assertEqual(self.outcomes(), ["pending"])

    def test_forgotten(self) -> None:
        """What is forgotten was not taken."""
        self.add_to_device(NAME)
        self.reset()
        path = f"{V2}/destinations/{NAME}/forget"
        self.post_json(path, drop_to_device=True, dry_run=False)
        self.tell("60")
        self.assertEqual(self.outcomes(), ["forgotten", "interrupted"])

    def test_odd(self) -> None:
        """An entry that cannot be read is left alone, and others are followed."""
        for number, details in enumerate(('{"waiting":{"new":1}}', "{}")):
            self.insert(
                "federation_admin_audit",
                entry_id=f"x{number}",
                ts=0,
                action="reset",
                destination=NAME,
                user_id="@admin:test",
                instance="main",
                outcome="pending",
                ended_ts=5,
                details=details,
            )
        self.check("others are followed", "fail:9000 3 -> 9000 500 7 0 still_failing")


@pytest.mark.database
class NotesTestCase(StoryTestCase):
    """What is noted of refusals."""

    def test_together(self) -> None:
        """What many refuse is written together."""
        names = [f"host{number}.example" for number in range(20)]
        for name in names:
            self.add_destination(name, *FAILING)
            self.add_to_device(name)
            self.reset(name)
        with mock.patch.object(
            Audit, "note_txn", autospec=True, side_effect=Audit.note_txn
        ) as note:
            self.send(TOO_LARGE, *names)
            self.tell("1")
        self.assertLess(note.call_count, 10)
        for name in names:
            self.fail(9000, name)
        self.tell("30")
        self.assertEqual(self.outcomes(), ["refused"] * 20)

    def test_bug(self) -> None:
        """A bug keeps one note from being written, once, and not those after it."""
        self.add_to_device(NAME)
        self.reset()
        with (
            mock.patch.object(Audit, "note_txn", side_effect=ValueError("bug")) as note,
            self.assertLogs(follow_up.__name__, "ERROR") as logs,
        ):
            self.send(TOO_LARGE)
            self.tell("200")
        self.assertEqual((note.call_count, len(logs.output)), (1, 1))
        self.send(TOO_LARGE)
        self.fail(9000)
        self.tell("60")
        self.assertEqual(self.outcomes(), ["still_failing"])

    def test_rests(self) -> None:
        """The longer a look takes, the longer the next one is waited for."""
        self.reset()
        look = FollowUp._look
        looks = []

        async def begin_and_look(of: FollowUp) -> bool:
            looks.append(self.reactor.seconds())
            of.begin()
            return await look(of)

        async def run(*_: Any, **__: Any) -> Any:
            await self.homeserver.sleep_ms(1000)
            return [], []

        with (
            mock.patch.object(FollowUp, "_look", begin_and_look),
            mock.patch.object(Tables, "run", run),
        ):
            for _ in range(600):
                self.reactor.advance(0.1)
        self.assertIn(len(looks), range(2, 8))

    def test_rested(self) -> None:
        """That a look took long keeps nobody waiting when there was nothing left."""
        other = "other.example"
        self.add_destination(other, *FAILING)
        self.add_to_device(other)

        async def run(*_: Any, **__: Any) -> Any:
            await self.homeserver.sleep_ms(3000)
            return [], []

        self.reset()
        with mock.patch.object(Tables, "run", run):
            self.wait(5)
        self.reset(other)
        self.send(None, other)
        self.tell("5")
        self.assertEqual(self.outcomes()[0], "connected")

    def test_away_before(self) -> None:
        """Once the database is back it is looked as often as before."""
        self.reset()
        look = mock.AsyncMock(side_effect=[RuntimeError("away"), *[True] * 20])
        away = mock.patch.object(Homeserver, "is_database_away", return_value=True)
        with mock.patch.object(FollowUp, "_look", look), away:
            for _ in range(620):
                self.reactor.advance(0.1)
        self.assertGreater(look.await_count, 3)


@pytest.mark.database
class NeverDeliveredTestCase(StoryTestCase):
    """Where no event was ever delivered, Synapse may send nothing by itself."""

    def setUp(self) -> None:
        super().setUp()
        self.run_sql("UPDATE destinations SET last_successful_stream_ordering = NULL")
        self.add_room(NAME, "!r:test", 9)
        self.insert(
            "events",
            event_id="$e",
            room_id="!r:test",
            type="m.room.message",
            stream_ordering=9,
            topological_ordering=1,
            depth=1,
            processed=True,
            outlier=False,
            sender="@admin:test",
            contains_url=False,
        )

    def test_reset(self) -> None:
        """It is contacted, and what is sent then decides."""
        story = "answered 60 pending fail:90000 60 -> 90000 500 - 1 refused"
        self.check("what is sent then decides", story)

    def test_reconnect(self) -> None:
        """A reconnect tells within its time that this is not known."""
        channel = self.reconnect(timeout_ms=2000)
        self.answer()
        self.tell("3")
        self.assertEqual(channel.json_body["outcome"], "pending")
        self.tell("fail:90000 60")
        self.assertEqual(self.row(NAME)[2], 500)
        self.assertEqual(self.outcomes()[0], "refused")
