# SPDX-License-Identifier: Apache-2.0
"""One destination is reconnected: contact first, change only what proved to work."""

from typing import Any
from unittest import mock

import pytest
from module_case import NAME, MembersTestCase
from parameterized import parameterized
from probe_case import ANSWER, LONG_FAILING, ProbeTestCase
from twisted.internet import error

from synapse_federation_admin import limits
from synapse_federation_admin.storage.audit import Audit

REFUSED = error.ConnectionRefusedError()
NOT_FAILING = (0, 0, None, 3)


class ReconnectTestCase(ProbeTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.add_destination(NAME, *LONG_FAILING)


class OutcomesTestCase(ReconnectTestCase, MembersTestCase):
    """What is answered and changed, by what comes of the contact."""

    def test_at_once(self) -> None:
        """The entry in the audit ends in the transaction in which the row is cleared.

        So a process that is killed right after it has left no wrong entry.
        """

        async def killed(*_: Any) -> None:
            return

        with mock.patch.object(Audit, "end", killed):
            self.reconnect()
            self.answer()
        self.assertEqual(self.outcomes(), ["connected"])

    def test_not_sent(self) -> None:
        """Where the sender was never started, nobody is connected by an answer."""
        rename = (
            "UPDATE federation_stream_position SET instance_name = '{}' "
            "WHERE instance_name = '{}'"
        )
        self.run_sql(rename.format("other", "sender1"))
        channel = self.reconnect()
        self.answer()
        self.assertEqual(channel.json_body["outcome"], "not_sent")
        self.assertEqual(self.row(NAME), (0, 0, None, 7))
        # Once it has begun, that it had not some seconds ago is nothing.
        self.run_sql(rename.format("sender1", "other"))
        self.reconnect()
        self.answer()
        self.assertEqual(self.outcomes(), ["connected", "not_sent"])

    @parameterized.expand(
        [
            (LONG_FAILING, REFUSED, False, "still_failing", "connection_refused"),
            (LONG_FAILING, REFUSED, True, "forced", "connection_refused"),
            (LONG_FAILING, ANSWER, False, "connected", None),
            (LONG_FAILING, ANSWER, True, "connected", None),
            (LONG_FAILING, KeyError("a bug"), False, "internal", "internal"),
            (NOT_FAILING, ANSWER, False, "connected", None),
            (NOT_FAILING, REFUSED, False, "still_failing", "connection_refused"),
        ]
    )
    def test_outcome(
        self, row: Any, what: Any, force: bool, outcome: str, kind: str | None
    ) -> None:
        """It is cleared and woken where it answers, or is forced; else nothing changes.

        A bug on this side is told as that.
        """
        self.add_destination(NAME, *row)
        with self.wakes() as woken:
            channel = self.reconnect(
                reason="back", **({"force": True} if force else {})
            )
            self.answer(what)
        body = channel.json_body
        clears = outcome in ("connected", "forced")
        self.assertEqual(body["outcome"], outcome)
        self.assertEqual((body["contact"]["error"] or {}).get("kind"), kind)
        self.assertEqual(body["contact"]["server"] is None, kind is not None)
        self.assertEqual(body["before"]["failure_ts"], row[2])
        self.assertEqual(body["after"]["failure_ts"], None if clears else row[2])
        self.assertEqual(body["told"], ["main"] if clears else [])
        self.assertEqual(woken.called, clears)
        self.assertEqual(self.row(NAME), (0, 0, None, row[3]) if clears else row)
        (entry,) = self.audit()
        # Of what was forced it is known when it fails, or not.
        known = "pending" if outcome == "forced" else outcome
        self.assertEqual((entry["outcome"], entry["reason"]), (known, "back"))
        self.assertEqual(entry["details"].get("force"), force or None)
        self.assertEqual(entry["details"]["failure_ts"], row[2])

    def test_pending(self) -> None:
        """After its time limit the answer is `pending`; the attempt goes on to its end.

        The audit has its outcome then.
        """
        channel = self.reconnect(timeout_ms=2000)
        self.pump(0.03)
        self.assertEqual(channel.code, 200, channel.result)
        self.assertEqual(channel.json_body["outcome"], "pending")
        self.assertEqual(channel.json_body["after"]["status"], "backing_off")
        self.assertGreaterEqual(channel.json_body["contact"]["duration_ms"], 1900)
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "pending")
        self.assertIsNone(entry["ended_ts"])
        self.assertEqual(self.row(NAME), LONG_FAILING)
        self.answer()
        self.assertEqual(self.outcomes(), ["connected"])
        self.assertEqual(self.row(NAME), (0, 0, None, 7))

    @pytest.mark.database
    def test_forced_in_vain(self) -> None:
        """What was forced, and is still failing, has failed since when it did before.

        It is not contacted again.
        """
        self.reconnect(force=True)
        self.answer(REFUSED)
        now_ms = self.store_failure()
        self.pump(0.1)
        self.assertEqual(self.row(NAME), (now_ms, 600_000, 500, 7))
        self.assertEqual(len(self.probes), 1)
        self.assertEqual(self.outcomes(), ["forced"])

    @pytest.mark.database
    def test_stale_cache(self) -> None:
        """What was changed by hand, and Synapse still backs off from, is cleared."""
        self.assertIsNotNone(self.timings())
        self.add_destination(NAME, 0, 0, None, 7)
        self.reconnect()
        self.answer()
        self.assertIsNone(self.timings())

    def test_unknown(self) -> None:
        """A name of which Synapse knows nothing is 404, and leaves no trace."""
        for name in ("no.example", "down.exampl", "DOWN.example", "%", "a\0b"):
            self.assert_error(self.reconnect(name), 404, "M_NOT_FOUND")
        self.assertEqual(self.audit(), [])
        self.assertEqual(self.probes, [])
        # It may be known the next moment.
        self.reactor.advance(0.01)
        self.add_destination("no.example", *LONG_FAILING)
        self.reconnect("no.example")
        self.assertEqual(self.probed, ["no.example"])

    @pytest.mark.database
    def test_unlisted(self) -> None:
        """A name that has no row is contacted, if something waits, or rooms are shared.

        It gets no row by that.
        """
        self.add_to_device("new.example")
        self.share_room("shares.example")
        for name in ("new.example", "shares.example"):
            channel = self.reconnect(name)
            self.answer()
            self.take(name)
            self.assertEqual(channel.json_body["outcome"], "connected")
        self.assertEqual(self.names(), [NAME])

    def test_invalid_name(self) -> None:
        """A row whose name is no server name is not contacted: `invalid_name`."""
        self.add_destination("no server", *LONG_FAILING)
        channel = self.reconnect("no server")
        self.assertEqual(channel.json_body["outcome"], "still_failing")
        self.assertEqual(channel.json_body["contact"]["error"]["kind"], "invalid_name")
        self.assertEqual(self.probes, [])
        # So is our own, also in capitals.
        self.add_destination("TEST", *LONG_FAILING)
        error = self.reconnect("TEST").json_body["contact"]["error"]
        self.assertEqual((error["kind"], error["reason"]), ("invalid_name", "own_name"))
        self.assertEqual(self.probes, [])
        # It can be forced.
        channel = self.reconnect("no server", force=True)
        self.assertEqual(channel.json_body["outcome"], "forced")
        self.assertEqual(self.row("no server"), (0, 0, None, 7))

    def test_strange_answers(self) -> None:
        """Whatever a server says of its software, or not, decides nothing."""
        for answer, server in (
            (REFUSED, {"name": None, "version": None}),
            ({}, {"name": None, "version": None}),
            ({"server": 1}, {"name": None, "version": None}),
            (
                {"server": {"name": "a\n\x1b[31m", "version": ["1"]}},
                {"name": "a\\n\\x1b[31m", "version": None},
            ),
        ):
            self.software = answer
            channel = self.reconnect()
            self.answer()
            self.assertEqual(channel.json_body["outcome"], "connected")
            self.assertEqual(channel.json_body["contact"]["server"], server)

    @pytest.mark.database
    def test_database_fails(self) -> None:
        """If the outcome can't be stored: 500, nothing is changed, nobody woken."""
        channel = self.reconnect()
        self.refuse_changes("destinations")
        with self.wakes() as woken:
            self.answer()
        self.assert_error(channel, 500, "M_UNKNOWN")
        self.assertEqual(self.row(NAME), LONG_FAILING)
        woken.assert_not_called()
        self.assertEqual(self.outcomes(), ["failed"])

    @pytest.mark.database
    def test_audit_fails(self) -> None:
        """If the audit can't be written, nothing is done: no contact is made."""
        self.refuse_changes("federation_admin_audit")
        channel = self.reconnect()
        self.assertEqual(channel.code, 500)
        self.assertEqual(self.probes, [])
        self.assertEqual(self.row(NAME), LONG_FAILING)


@pytest.mark.database
class SeenThroughTestCase(ReconnectTestCase):
    """What waits is sent, and the answer waits for what comes of that."""

    def reconnect_waiting(self, **body: Any) -> Any:
        self.add_to_device(NAME)
        channel = self.reconnect(**body)
        self.answer()
        self.assertFalse(channel.is_finished())
        self.assertEqual(self.row(NAME), (0, 0, None, 7))
        return channel

    def refuse(self, **details: Any) -> None:
        """Have a sender find out that it is refused, as Synapse stores and tells it."""
        sent = {"status": 413, "bytes": 9, "pdus": 0, "edus": 1}
        refused = {"refused": {**sent, "to_device_messages": 1, **details}}
        (entry,) = self.audit()
        self.get_success(self.log.note({entry["entry_id"]: refused}, "entry_id"))
        self.store_failure()

    def test_not_told(self) -> None:
        """If the process that sends tells nothing, it is not known what was refused."""
        channel = self.reconnect_waiting()
        self.store_failure()
        self.pump(0.03)
        self.assertEqual(channel.json_body["outcome"], "refused")
        self.assertIsNone(channel.json_body["refused"])

    def test_not_known_in_time(self) -> None:
        """After its time limit it is `pending`; it is seen through all the same."""
        channel = self.reconnect_waiting(timeout_ms=3000)
        self.pump(0.03)
        body = channel.json_body
        self.assertEqual(body["outcome"], "pending")
        self.assertEqual(body["after"]["status"], "online")
        self.assertEqual(body["told"], ["main"])
        # Nothing leaves before it runs.
        found = body["sender"]
        self.assertEqual((found["instance"], found["state"]), ("sender1", "never_seen"))
        (entry,) = self.audit()
        self.assertEqual(entry["outcome"], "pending")
        self.assertIsNotNone(entry["ended_ts"])
        self.refuse()
        self.pump(0.1)
        self.assertEqual(self.outcomes(), ["refused"])
        self.assertEqual(self.row(NAME)[2], 500)


class ManyAskersTestCase(ReconnectTestCase):
    """However many ask, there is one contact."""

    @pytest.mark.database
    def test_one_forces(self) -> None:
        """Each who asks at once has an entry, and who forces gets what they ask for."""
        plain, forced = self.reconnect(), self.reconnect(force=True)
        self.reconnect()
        self.answer(REFUSED)
        self.assertEqual(plain.json_body["outcome"], "still_failing")
        self.assertEqual(forced.json_body["outcome"], "forced")
        self.assertEqual(len(self.probes), 1)
        self.assertEqual(len(self.audit()), 3)

    def test_many_destinations(self) -> None:
        """Contacts with many destinations wait for each other, some at a time."""
        for number in range(limits.CONTACTS + 5):
            name = f"host{number}.example"
            self.add_destination(name, *LONG_FAILING)
            self.reconnect(name, timeout_ms=1)
        self.assertEqual(len(self.probes), limits.CONTACTS)
        for which in range(5):
            self.answer(which=which)
        self.assertEqual(len(self.probes), limits.CONTACTS + 5)
