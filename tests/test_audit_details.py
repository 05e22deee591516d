# SPDX-License-Identifier: Apache-2.0
"""The audit in detail: retried transactions, pruning, tokens, random walks."""

import random
from typing import Any
from unittest import mock

import pytest
import test_audit as of_audit
from module_case import quote
from probe_case import V2
from synapse.storage.database import LoggingTransaction
from test_audit import ADMIN, OTHER

from synapse_federation_admin.repair import housekeeping
from synapse_federation_admin.storage import audit as module
from synapse_federation_admin.storage.audit_entry import AuditAction


@pytest.mark.database
class DetailsTestCase(of_audit.AuditTestCase):
    def operational_error(self) -> Exception:
        error: Exception = self.store.database_engine.module.OperationalError("gone")
        return error

    def test_retried(self) -> None:
        """What a transaction that was tried again wrote is in the log once."""
        entry = self.log.entry(AuditAction.RESET, ADMIN, outcome="reset")
        attempts = []

        def insert_txn(txn: LoggingTransaction) -> None:
            self.log.insert_txn(txn, [entry])
            attempts.append(1)
            if len(attempts) == 1:
                raise self.operational_error()

        with self.assertLogs(module.logger, "INFO") as logs:
            self.get_success(self.homeserver.run_db_interaction("test", insert_txn))
        self.assertEqual(len(attempts), 2)
        self.assertEqual(len(self.audit()), 1)
        self.assertEqual(len(logs.records), 1)

    def test_retried_in_vain(self) -> None:
        """What only an attempt that failed wrote is not in the log."""
        entry = self.log.entry(AuditAction.RESET, ADMIN, outcome="reset")
        attempts = []

        def insert_txn(txn: LoggingTransaction) -> None:
            attempts.append(1)
            if len(attempts) == 1:
                self.log.insert_txn(txn, [entry])
                raise self.operational_error()

        with self.assertNoLogs(module.logger, "INFO"):
            self.get_success(self.homeserver.run_db_interaction("test", insert_txn))
        self.assertEqual(self.audit(), [])

    def test_random_pages(self) -> None:
        """Each of some hundred entries comes once, in order, with any filter."""
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
            for _ in range(300)
        ]
        entries.sort(key=lambda e: (e.ts, e.entry_id))
        filters = {
            "": lambda e: True,
            "&outcome=a": lambda e: e.outcome == "a",
            "&user=@boss:test": lambda e: e.actor == OTHER,
            "&run_id=r1&destination=x&outcome=b&user=@admin:test": lambda e: (
                (e.run_id, e.destination, e.outcome, e.actor) == ("r1", "x", "b", ADMIN)
            ),
            "&action=reset&action=cap_backoff&outcome=c": lambda e: e.outcome == "c",
            "&action=reset&since_ts=3&until_ts=9&outcome=a": lambda e: (
                e.action == "reset" and 3 <= e.ts < 9 and e.outcome == "a"
            ),
        }
        with mock.patch.object(module, "_WINDOW", 5):
            for limit in (7, 100, 299, 300, 301):
                for query, keeps in filters.items():
                    ids = [entry.entry_id for entry in entries if keeps(entry)]
                    self.assertEqual(self.walk(f"limit={limit}&dir=f{query}"), ids)
                    self.assertEqual(self.walk(f"limit={limit}{query}"), ids[::-1])

    def test_token_of_each_filter(self) -> None:
        """A token is good for no other value of any parameter that filters."""
        for number in range(3):
            self.write(ts=number)
        token = quote(self.get_json(f"{V2}/audit?limit=1")["next_token"])
        for query in (
            "destination=a.example",
            "user=@admin:test",
            "action=reconnect",
            "outcome=connected",
            "run_id=r",
            "since_ts=0",
            "until_ts=99",
            "dir=f",
        ):
            channel = self.ask("GET", f"{V2}/audit?{query}&from={token}")
            self.assertEqual(channel.code, 400, query)
        # What is no filter may differ.
        self.assertEqual(len(self.ids(f"?limit=5&dir=b&from={token}")), 2)

    def test_nul_anywhere(self) -> None:
        """NUL, and what is not UTF-8, is 400 in every parameter that is a text."""
        for name in ("destination", "user", "outcome", "run_id", "action"):
            for text in ("%00", "a%00b", "%ff", "%ed%a0%80"):
                channel = self.ask("GET", f"{V2}/audit?{name}={text}")
                self.assertEqual(channel.code, 400, (name, text))
                self.assertIn(f"'{name}'", channel.json_body["error"])

    def test_restart_keeps_bulk(self) -> None:
        """What this process does not do by itself, a run, is not interrupted."""
        self.write(outcome="pending", action="bulk_new", run_id="r")
        self.reactor.advance(1)
        self.get_success(self.housekeeping.keep_house(self.clock.time_msec()))
        self.assertEqual([e["outcome"] for e in self.audit()], ["pending"])

    def test_began_meanwhile(self) -> None:
        """What begins when the process starts is not taken for what it left."""
        entry = self.write(outcome="pending")
        self.get_success(self.housekeeping.keep_house(entry.ts))
        self.assertEqual([e["outcome"] for e in self.audit()], ["pending"])

    def test_end_is_logged_once(self) -> None:
        """An end that comes too late is neither written nor logged."""
        entry = self.write(outcome="pending")
        with self.assertLogs(module.logger, "INFO") as logs:
            self.get_success(self.log.end(self.log.ended(entry, "connected")))
        self.assertEqual(len(logs.records), 1)
        with self.assertNoLogs(module.logger, "INFO"):
            self.get_success(self.log.end(self.log.ended(entry, "still_failing")))

    def test_committed_first(self) -> None:
        """What a transaction wrote before it failed is not logged."""
        pending = self.write(outcome="pending")
        entry = self.log.entry(AuditAction.RESET, ADMIN, outcome="reset")

        def fail_txn(txn: LoggingTransaction) -> None:
            self.log.insert_txn(txn, [entry])
            self.log.end_txn(txn, [self.log.ended(pending, "connected")])
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

    def test_pruned_in_pieces(self) -> None:
        """No transaction of a pruning deletes more than its share."""
        for _ in range(7):
            self.write(ts=-(10**12))
        run = self.homeserver.run_db_interaction
        deleted = []

        async def spy(desc: str, func: Any) -> Any:
            result = await run(desc, func)
            if desc == "federation_admin_prune":
                deleted.append(result)
            return result

        with (
            mock.patch.object(housekeeping, "_DELETED_AT_ONCE", 3),
            mock.patch.object(self.homeserver, "run_db_interaction", spy),
        ):
            self.get_success(self.housekeeping.prune())
        # No other table has anything to delete.
        self.assertEqual([count for count in deleted if count], [3, 3, 1])
