# SPDX-License-Identifier: Apache-2.0
"""The message to the admins of a server."""

from unittest import mock

import pytest
from module_case import V2, ModuleTestCase

from synapse_federation_admin import limits
from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.diagnosis.diagnose import Diagnoses
from synapse_federation_admin.diagnosis.findings import (
    Connection,
    ConnectionsFindings,
    StageOutcome,
)
from synapse_federation_admin.diagnosis.stages import Diagnosis, Stage, StageName
from synapse_federation_admin.diagnosis.tell import message_to_admins
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.failures.situation import Effect, Situation
from synapse_federation_admin.failures.text import message_of
from synapse_federation_admin.storage.records import RecordedFailure

pytestmark = pytest.mark.one_synapse

# 2026-11-24 12:00 UTC.
NOON = 1_795_521_600_000
HOUR = 3_600_000

REFUSED = Failure(FailureKind.CONNECTION_REFUSED)


def test_message() -> None:
    """It says who cannot send to whom, since when, and what was met."""
    row = Destination("b.example", NOON - HOUR, 2 * HOUR, NOON - 48 * HOUR, 7)
    expired = RecordedFailure(
        "tls_expired", "It has expired", NOON - 3 * HOUR, NOON - HOUR, 7, "main"
    )
    once = RecordedFailure("other", "It broke off", NOON, NOON, 1, "main")
    text = message_to_admins(
        "ours.example", row, NOON, last_success_ts=10**18, failures=[once, expired]
    )
    for told in (
        "homeserver ours.example cannot deliver messages to yours, b.example",
        "failing since 2026-11-22 12:00, for ",
        "- Last attempt that failed: 2026-11-24 11:00\n",
        "- Next attempt, at the earliest: 2026-11-24 13:00\n",
        f"- Last request that succeeded: {10**18}\n",
        "- It broke off (2026-11-24 12:00)\n"
        "- It has expired (7 times, 2026-11-24 09:00 to 2026-11-24 11:00)\n",
    ):
        assert told in text
    well = message_to_admins(
        "ours.example", Destination("b.example", 0, 0, None, 7), NOON
    )
    assert "It is not in backoff here just now" in well
    assert "cannot" not in well


class TellTestCase(ModuleTestCase):
    """GET destinations/<destination>/tell."""

    path = f"{V2}/destinations/b.example/tell"

    def test_unknown(self) -> None:
        """Of what is not known there is nothing to tell."""
        self.assertEqual(self.ask("GET", self.path).code, 404)

    def test_recorded(self) -> None:
        """What was recorded is told, and what the last diagnosis has found."""
        self.add_destination("b.example", 1000, 2000, 500, 7)
        told = {"message": "It has expired", "count": 3}
        self.insert_failure("b.example", "tls_expired", **told)
        body = self.get_json(self.path)
        self.assertIn("failing since 1970-01-01 00:00", body["text"])
        self.assertIn("It has expired (3 times", body["text"])
        self.assertEqual((body["diagnosed_ts"], body["fault"]), (None, None))
        connection = Connection(
            address="192.0.2.1",
            host="b.example",
            port=8448,
            host_header="b.example",
            sni="b.example",
            outcome=StageOutcome.FAILED,
            error=REFUSED,
        )
        stage = Stage.failed(
            StageName.CONNECTIONS, REFUSED, ConnectionsFindings((connection,))
        )

        async def diagnose(_: object, _way: object, name: str) -> Diagnosis:
            situation = Situation(Effect.STOPS, REFUSED)
            return Diagnosis(name, 70, 1, "main", situation, (stage,), None)

        with mock.patch.object(Diagnoses, "_diagnose", diagnose):
            self.ask("POST", f"{V2}/destinations/b.example/diagnose", content={})
            body = self.get_json(self.path)
            self.assertEqual(body["diagnosed_ts"], 70)
            explained = f"found: {message_of(REFUSED)}."
            self.assertIn(f"A check at 1970-01-01 00:00 {explained}\n", body["text"])
            self.assertIn(
                f"- b.example, port 8448, 192.0.2.1: {message_of(REFUSED)}\n",
                body["text"],
            )
            # Of those, only so many are kept.
            with mock.patch.object(limits, "KEPT_DIAGNOSES", 1):
                self.ask("POST", f"{V2}/destinations/c.example/diagnose", content={})
        self.assertIsNone(self.get_json(self.path)["diagnosed_ts"])
