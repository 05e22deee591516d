# SPDX-License-Identifier: Apache-2.0
"""How outages begin and end: what the job makes of rows. More: test_outage_stories."""

from typing import Any

import pytest
from module_case import NAME
from outages_case import DAY, HOUR, MINUTE, OutagesTestCase
from synapse.federation.transport.server._base import Authenticator

from synapse_federation_admin import limits
from synapse_federation_admin.storage.outage_ends import changed_since, ended_outages
from synapse_federation_admin.storage.outages import OPEN_OUTAGES

pytestmark = [pytest.mark.database, pytest.mark.one_synapse]


class BeginTestCase(OutagesTestCase):
    """When an outage begins, where no process has written that it did."""

    def test_begins(self) -> None:
        """What fails has an outage since then, what does not has none.

        Also since before recording began; and where Synapse does not know since when it
        fails, since the last try. Looking again begins no other one.
        """
        for row, expected in (
            ((DAY + 1, 600_000, DAY), [(DAY, None, None)]),
            ((DAY, 600_000, None), [(DAY, None, None)]),
            ((0, 0, None), []),
            ((), []),
        ):
            self.forget_all()
            self.add_destination(NAME, *row)
            for _ in range(2):
                self.look()
                self.assert_recorded(expected, row)

    def test_kind(self) -> None:
        """It has the kind of the last failure since, and no older one's."""
        for kind, ts, kinds in (
            ("dns_not_found", self.began - HOUR, []),
            ("tls_expired", self.began + 1, ["tls_expired"]),
        ):
            self.forget_all()
            self.failing(self.began)
            self.failed(kind, ts)
            self.look()
            self.assertEqual(self.shown()[0]["kinds"], kinds)

    def test_no_rows(self) -> None:
        """What Synapse's row says takes no row of ours; availability counts it."""
        self.failing(self.began)
        self.pass_time(HOUR)
        self.look()
        self.assertEqual(self.count("federation_admin_outages"), 0)
        page = self.get_json(
            "/_synapse/admin/v2/federation/destinations?include=availability"
        )
        self.assertEqual(page["destinations"][0]["availability"]["share"], 0)

    def test_plan(self) -> None:
        """A look at what was written lately reads no more of the audit than a day."""
        which = changed_since(self.now)
        over = ended_outages(OPEN_OUTAGES, which, self.now)

        ways = ("seqscan", "bitmapscan")
        found = self.plan(over.text, over.args, without=ways)
        self.assertIn("federation_admin_audit_ts", found)
        self.assertNotIn("SCAN federation_admin_audit", found)

    def test_many_end(self) -> None:
        """However many have worked again, each outage ends."""
        count = limits.OUTAGES_ENDED + 1
        self.run_sql(
            "INSERT INTO federation_admin_outages (destination, start_ts, kinds) "
            f"WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n "
            f"WHERE n < {count}) SELECT 'd' || n, 1, '' FROM n"
        )
        self.look()
        self.assertEqual(self.count("federation_admin_outages WHERE end_ts > 0"), count)

    def count(self, rows: str) -> int:
        ((found,),) = self.run_sql(f"SELECT COUNT(*) FROM {rows}")
        return int(found)


class ClockTestCase(OutagesTestCase):
    """The clock is set back while an outage lasts that began an hour ago."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.failing(self.began)
        self.write_outage()
        self.pass_time(HOUR)

    def test_clock_set_back(self) -> None:
        """No outage ends before it began, though the clock was set back meanwhile."""
        self.pass_time(-65 * MINUTE)
        self.working()
        self.recovered(self.now)
        self.look()
        self.assert_recorded([(self.began, self.began, "recovered")])
        self.assertEqual(self.shown()[0]["duration_ms"], 0)

    def test_clock_set_back_open(self) -> None:
        """An outage that begins in the future makes no share of a day exceed 1."""
        self.pass_time(-2 * HOUR)
        self.run_sql(f"UPDATE federation_admin_recording SET since_ts = {DAY}")
        page = self.get_json(
            "/_synapse/admin/v2/federation/destinations?include=availability"
        )
        (found,) = page["destinations"]
        self.assertEqual(found["availability"]["share"], 1)


class NeverRecordedTestCase(OutagesTestCase):
    """What fails since before anything was recorded, and ends."""

    def test_asks(self) -> None:
        """A destination that asks something of us has recovered in that moment."""
        self.failing(self.began)
        self.pass_time(HOUR)
        asked_ts = self.now
        self.get_success(Authenticator(self.hs).reset_retry_timings(NAME))
        self.reactor.advance(4)
        self.look(at_all=False)
        self.assert_recorded([(self.began, asked_ts, "recovered")])

    def test_reset(self) -> None:
        """A reset ends it, once it is known that something was taken."""
        self.failing(self.began)
        self.pass_time(HOUR)
        reset_ts = self.now
        self.assertEqual(self.reset().code, 200)
        self.pass_time(90_000)
        self.look(at_all=False)
        self.assert_recorded([(self.began, None, None)])
        self.run_sql("UPDATE federation_admin_audit SET outcome = 'connected'")
        self.look(at_all=False)
        self.assert_recorded([(self.began, reset_ts, "reset")])
