# SPDX-License-Identifier: Apache-2.0
"""The audit: who did what, when, why, and what came of it."""

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import attr
import pytest
from module_case import FAILING, NAME, V2
from parameterized import parameterized
from probe_case import ANSWER, LONG_FAILING, ProbeTestCase
from synapse.storage.database import LoggingTransaction

from synapse_federation_admin import limits
from synapse_federation_admin.homeserver.process import Process
from synapse_federation_admin.repair.housekeeping import Housekeeping
from synapse_federation_admin.storage import audit as module
from synapse_federation_admin.storage.values import Actor, AuditAction, AuditEntry

pytestmark = pytest.mark.one_synapse

DAY_MS = 86_400_000
ADMIN = Actor("@admin:test")
OTHER = Actor("@other:test", "@boss:test")


class AuditTestCase(ProbeTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.housekeeping = Housekeeping(
            self.homeserver,
            self.tables,
            self.log,
            keep_for_ms=10 * DAY_MS,
            outages_keep_for_ms=20 * DAY_MS,
        )

    def write(self, **values: Any) -> AuditEntry:
        """Write an entry."""
        entry = self.log.entry(
            values.pop("action", AuditAction.RECONNECT),
            values.pop("actor", ADMIN),
            outcome=values.pop("outcome", "connected"),
            destination=values.pop("destination", "a.example"),
        )
        entry = attr.evolve(entry, **values)
        self.get_success(self.log.insert(entry))
        return entry


@pytest.mark.database
class WhoTestCase(AuditTestCase):
    def test_reset(self) -> None:
        """A v1 reset is in it, with what it took away; what is refused is not."""
        self.add_destination(NAME, *FAILING)
        before_ms = self.clock.time_msec()
        for name in (NAME, NAME, "no.example"):
            self.reset(name)
        (entry,) = self.audit()
        keys = ("action", "outcome", "destination", "user_id", "puppeted_by", "reason")
        self.assertEqual(
            [entry[key] for key in keys],
            ["reset", "pending", NAME, "@admin:test", None, None],
        )
        self.assertEqual(entry["details"]["failure_ts"], 500)
        self.assertEqual(entry["details"]["waiting"]["delivered"], 7)
        self.assertGreaterEqual(entry["ts"], before_ms)

    def test_puppet(self) -> None:
        """Who acts with another user's token is in it, beside that user."""
        self.register_user("second", "pass", admin=True)
        channel = self.ask("POST", "/_synapse/admin/v1/users/@second:test/login")
        self.assertEqual(channel.code, 200, channel.result)
        token = channel.json_body["access_token"]
        self.add_destination(NAME, *LONG_FAILING)
        self.answers[NAME] = ANSWER
        self.ask("POST", f"{V2}/destinations/{NAME}/reconnect", token=token)
        (entry,) = self.audit()
        self.assertEqual(entry["user_id"], "@second:test")
        self.assertEqual(entry["puppeted_by"], "@admin:test")
        for user in ("@second:test", "@admin:test"):
            self.assertEqual(len(self.audit(f"?user={user}")), 1)
        self.assertEqual(self.audit("?user=@boss:test"), [])

    def test_cannot_be_written(self) -> None:
        """If the audit can't be written, v1 resets even so; the log has the entry."""
        self.add_destination(NAME, *FAILING)
        self.refuse_changes("federation_admin_audit")
        with self.assertLogs(module.logger, "INFO") as logs:
            self.assertEqual(self.reset().code, 200)
        self.assertEqual(self.row(NAME)[:3], (0, 0, None))
        warning, entry = logs.output[:2]
        self.assertIn("Cannot write to the audit", warning)
        self.assertIn('"action":"reset","outcome":"pending"', entry)
        self.assertEqual(self.audit(), [])


@pytest.mark.database
class ReadTestCase(AuditTestCase):
    def test_random_pages(self) -> None:
        """Each filter keeps what it says, and several what meets all of them.

        Page by page, in both directions, each entry comes exactly once, in order: also
        where many began at the same time, and where a filter thins them out.
        """
        rng = random.Random(1)
        entries = [
            self.write(
                ts=rng.randrange(12),
                outcome=rng.choice(["a", "b", "c"]),
                actor=rng.choice([ADMIN, OTHER]),
                destination=rng.choice(["x", "y", None]),
                action=rng.choice([AuditAction.RESET, AuditAction.CAP_BACKOFF]),
                run_id=rng.choice([None, "r1"]),
            )
            for _ in range(90)
        ]
        entries.sort(key=lambda e: (e.ts, e.entry_id))
        filters: dict[str, Callable[[AuditEntry], bool]] = {
            "": lambda e: True,
            "&outcome=a": lambda e: e.outcome == "a",
            "&user=@boss:test": lambda e: e.actor == OTHER,
            "&user=@other:test": lambda e: e.actor == OTHER,
            "&destination=x": lambda e: e.destination == "x",
            "&destination=X": lambda e: False,
            "&action=reset": lambda e: e.action == "reset",
            "&run_id=r1": lambda e: e.run_id == "r1",
            "&since_ts=3": lambda e: e.ts >= 3,
            "&until_ts=3": lambda e: e.ts < 3,
            "&run_id=r1&destination=x&outcome=b&user=@admin:test": lambda e: (
                (e.run_id, e.destination, e.outcome, e.actor) == ("r1", "x", "b", ADMIN)
            ),
            "&action=reset&action=cap_backoff&outcome=c": lambda e: e.outcome == "c",
            "&action=reset&since_ts=3&until_ts=9&outcome=a": lambda e: (
                e.action == "reset" and 3 <= e.ts < 9 and e.outcome == "a"
            ),
        }
        for limit in (7, 30, 90, 91):
            for query, keeps in filters.items():
                ids = [entry.entry_id for entry in entries if keeps(entry)]
                pages = self.pages(f"{V2}/audit?limit={limit}{query}")
                found = [e["entry_id"] for page in pages for e in page["entries"]]
                self.assertEqual(found, ids[::-1])

    def test_written_meanwhile(self) -> None:
        """What is written while somebody pages makes no other entry come twice."""
        entries = [self.write(ts=number // 3).entry_id for number in range(9)]
        found: list[str] = []
        for page in self.pages(f"{V2}/audit?limit=2"):
            found += [entry["entry_id"] for entry in page["entries"]]
            self.write(ts=100 + len(found))
        self.assertEqual(sorted(found), sorted(entries))


class KeepTestCase(AuditTestCase):
    def outcomes(self) -> dict[str, str]:
        return {e["entry_id"]: e["outcome"] for e in self.audit("?limit=1000")}

    @pytest.mark.database
    def test_prune(self) -> None:
        """What is older than is to be kept goes, in pieces; nothing else does."""
        self.reactor.advance(20 * DAY_MS / 1000)
        # This process was seen by the clock of the database, which is not the test's.
        self.pump(0.1)
        self.run_sql("DELETE FROM federation_admin_instances")
        now_ms = self.clock.time_msec()
        for number in range(7):
            self.write(ts=now_ms - 10 * DAY_MS - 1 - number)
        kept = [
            self.write(ts=now_ms - age).entry_id for age in (10 * DAY_MS, DAY_MS, 0)
        ]
        run = self.homeserver.run_db_interaction
        deleted = []

        async def spy(*args: Any, **kwargs: Any) -> Any:
            deleted.append(await run(*args, **kwargs))
            return deleted[-1]

        with (
            mock.patch.object(limits, "ROWS_PRUNED", 3),
            mock.patch.object(self.homeserver, "run_db_interaction", spy),
        ):
            self.get_success(self.housekeeping.prune())
        self.assertEqual(set(self.outcomes()), set(kept))
        # No other table has anything to delete.
        self.assertEqual([n for n in deleted if isinstance(n, int) and n], [3, 3, 1])

    @pytest.mark.database
    def test_never_ends(self) -> None:
        """What has been pending for a day never ends; but a run may."""
        self.reactor.advance(5 * DAY_MS / 1000)
        now_ms = self.clock.time_msec()
        old = self.write(ts=now_ms - DAY_MS - 1, outcome="pending", instance="gone")
        new = self.write(ts=now_ms - DAY_MS + 999, outcome="pending", instance="gone")
        run = self.write(
            ts=now_ms - 2 * DAY_MS, outcome="pending", action="bulk_new", run_id="r"
        )
        self.get_success(self.housekeeping.prune())
        self.assertEqual(
            self.outcomes(),
            {
                old.entry_id: "interrupted",
                new.entry_id: "pending",
                run.entry_id: "pending",
            },
        )

    @pytest.mark.database
    def test_away(self) -> None:
        """What a process was doing that is away is interrupted, by the one that runs
        background tasks; not of one that is seen, nor while this one is not."""
        for name, age_ms in (("seen", 590_000), ("away", 610_000)):
            self.add_instance(name, age_ms)
        now_ms = self.clock.time_msec()
        before = {
            self.write(
                ts=now_ms - ago_ms, outcome="pending", instance=name
            ).entry_id: outcome
            for name, ago_ms, outcome in (
                ("seen", 610_000, "pending"),
                ("away", 610_000, "interrupted"),
                # It may only not have written since the database was away.
                ("away", 590_000, "pending"),
                ("unheard of", 610_000, "pending"),
            )
        }
        look = partial(self.housekeeping._look_back, 0)
        own = "FROM federation_admin_instances WHERE instance = 'main'"
        self.run_sql(f"DELETE {own}")
        self.get_success(look())
        self.assertEqual(self.outcomes(), dict.fromkeys(before, "pending"))
        self.add_instance("main")
        with mock.patch.object(Process, "runs_background_tasks", False):
            self.get_success(look())
        self.assertEqual(self.outcomes(), dict.fromkeys(before, "pending"))
        self.get_success(look())
        self.assertEqual(self.outcomes(), before)

    @pytest.mark.database
    def test_start(self) -> None:
        """What a process was doing when it ended is interrupted when it starts.

        Not what others do, or a run. It prunes an hour later, for a clock may be wrong,
        and not within the hour in which the clock was set.
        """
        set_s = 1_800_000_000.0
        self.reactor.advance(set_s)

        def monotonic() -> float:
            return self.reactor.seconds() - set_s

        clock = mock.patch("time.monotonic", monotonic)
        clock.start()
        self.addCleanup(clock.stop)
        own = self.write(outcome="pending")
        too_old = self.write(ts=1)
        others = [
            self.write(outcome="pending", instance="worker1"),
            self.write(outcome="pending", action="bulk_new", run_id="r"),
        ]
        self.reactor.advance(1)
        self.housekeeping.start()
        later = self.write(outcome="pending")
        self.wait(0.1)
        # What has begun since is not what was left.
        self.assertEqual(
            self.outcomes(),
            {
                own.entry_id: "interrupted",
                later.entry_id: "pending",
                too_old.entry_id: "connected",
                **{entry.entry_id: "pending" for entry in others},
            },
        )
        self.wait(3500)
        self.assertIn(too_old.entry_id, self.outcomes())
        self.wait(110)
        self.assertNotIn(too_old.entry_id, self.outcomes())
        late = self.write(ts=1)
        # All timers go off.
        set_s += 7200
        self.wait(7200)
        self.assertIn(late.entry_id, self.outcomes())
        self.wait(3600)
        self.assertNotIn(late.entry_id, self.outcomes())

    def wait(self, seconds: float) -> None:
        """Let time pass, and background processes get on."""
        self.reactor.advance(seconds)
        self.pump(0.01)

    def test_failed(self) -> None:
        """That something went wrong is written, once the database is there for it."""
        entry = self.write(outcome="pending", details={"a": 1})
        with mock.patch.object(
            self.homeserver, "run_db_interaction", side_effect=self.database_away
        ):
            self.log.end_as_failed(entry)
            self.wait(1)
        self.assertEqual(self.outcomes(), {entry.entry_id: "pending"})
        self.wait(10)
        (found,) = self.audit()
        self.assertEqual((found["outcome"], found["details"]), ("failed", {"a": 1}))

    def test_ends_once(self) -> None:
        """An entry that has ended stays as it is, and is in the log once."""
        entry = self.write(outcome="pending")
        with self.assertLogs(module.logger, "INFO") as logs:
            self.get_success(self.log.end(self.log.ended(entry, "connected", {"a": 1})))
            self.get_success(self.log.end(self.log.ended(entry, "still_failing")))
        self.assertEqual(len(logs.records), 1)
        (found,) = self.audit()
        self.assertEqual((found["outcome"], found["details"]), ("connected", {"a": 1}))

    @parameterized.expand([((1, 2),), ((1,),)])
    @pytest.mark.database
    def test_retried(self, writes: tuple[int, ...]) -> None:
        """What a transaction wrote is in the log once, if its last attempt did."""
        entry = self.log.entry(AuditAction.RESET, ADMIN, outcome="reset")
        attempts = []

        def insert_txn(txn: LoggingTransaction) -> None:
            attempts.append(1)
            if len(attempts) in writes:
                self.log.insert_txn(txn, [entry])
            if len(attempts) == 1:
                raise self.database_away

        with mock.patch.object(module.logger, "info") as info:
            self.get_success(self.homeserver.run_db_interaction("test", insert_txn))
        self.assertEqual(len(attempts), 2)
        self.assertEqual(len(self.audit()), len(writes) - 1)
        self.assertEqual(info.call_count, len(writes) - 1)

    @pytest.mark.database
    def test_committed_first(self) -> None:
        """What a transaction wrote before it failed is not logged."""
        pending = self.write(outcome="pending")
        entry = self.log.entry(AuditAction.RESET, ADMIN, outcome="reset")

        def fail_txn(txn: LoggingTransaction) -> None:
            self.log.insert_txn(txn, [entry])
            self.log.end_txn(txn, self.log.ended(pending, "connected"))
            raise KeyError("what")

        with self.assertNoLogs(module.logger, "INFO"):
            self.get_failure(
                self.homeserver.run_db_interaction("test", fail_txn), KeyError
            )
        self.assertEqual([e["outcome"] for e in self.audit()], ["pending"])

    def test_logged_at_both_ends(self) -> None:
        """What may take long is logged when it begins, too; nothing else is."""
        with self.assertLogs(module.logger, "INFO") as logs:
            for action in AuditAction:
                self.write(outcome="pending", action=action)
        said = {
            r.getMessage().split('"action":"')[1].split('"')[0] for r in logs.records
        }
        self.assertEqual(said, {"bulk_reconnect", "bulk_forget", "bulk_cap_backoff"})

    def test_log(self) -> None:
        """What has ended is in the log at INFO: a line of ASCII JSON, in any case."""
        reason = "because\n2026 \x1b[31m ERROR \u2028 forged\r\n"
        with self.assertLogs(module.logger, "INFO") as logs:
            self.write(reason=reason)
            self.write(outcome="pending")
        (record,) = logs.records
        line = record.getMessage()
        self.assertTrue(line.isascii() and line.isprintable())
        said = json.loads(line.removeprefix("Audit: "))
        self.assertEqual(said["reason"], reason)
        self.assertEqual(said["user"], "@admin:test")
        self.assertEqual(said["outcome"], "connected")

    def test_log_of_run(self) -> None:
        """What a run does alike to several destinations at once is one line."""
        made = [
            self.log.entry(
                AuditAction.RECONNECT,
                ADMIN,
                destination=name,
                run_id="run",
                outcome=outcome,
                details={"contact": 1},
            )
            for name, outcome in (
                ("a", "pending"),
                ("b", "connected"),
                ("c", "pending"),
                ("d", "still_failing"),
                ("e", "connected"),
            )
        ]
        made = [attr.evolve(entry, ended_ts=1) for entry in made]
        pending = [entry for entry in made if entry.outcome == "pending"]
        ended = [self.log.ended(entry, "refused") for entry in pending]

        def write_txn(txn: LoggingTransaction) -> None:
            self.log.insert_txn(txn, made)
            self.assertEqual(self.log.end_txn(txn, made[1], *ended), ended)

        with self.assertLogs(module.logger, "INFO") as logs:
            self.get_success(self.homeserver.run_db_interaction("test", write_txn))
        lines = [r.getMessage().removeprefix("Audit: ") for r in logs.records]
        told = [json.loads(line) for line in lines]
        self.assertEqual(
            [(said["outcome"], said["destination"]) for said in told],
            [
                ("pending", ["a", "c"]),
                ("connected", ["b", "e"]),
                ("still_failing", "d"),
                ("refused", ["a", "c"]),
            ],
        )
        self.assertEqual({said["run_id"] for said in told}, {"run"})
        self.assertEqual(told[2]["contact"], 1)
