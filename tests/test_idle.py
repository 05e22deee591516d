# SPDX-License-Identifier: Apache-2.0
"""What the module does for a homeserver that has nothing to do: next to nothing."""

from collections import Counter

import pytest
from module_case import NAME, ModuleTestCase
from prometheus_client import REGISTRY

pytestmark = [pytest.mark.database, pytest.mark.one_synapse]

PREFIX = "synapse_federation_admin_"
MINUTES = 10

# A minute, and at most: of the first process, those with which each process says every
# 15 seconds that it runs among them; and of each further one.
MOST_TRANSACTIONS = 10
MOST_OF_ANOTHER = 5


class IdleTestCase(ModuleTestCase):
    """After the first two minutes, in which it does what is due after a start."""

    def pass_minutes(self, minutes: int, *, scraped: bool) -> None:
        """Let time pass, and have metrics be read every 15 seconds, or not."""
        for _ in range(4 * minutes):
            self.pump(0.15)  # a hundred times
            if scraped:
                self.scrape()

    def scrape(self) -> "Counter[str]":
        """Read all metrics; return how many transactions there were, by `desc`."""
        found: Counter[str] = Counter()
        self.updated_s = self.known = None
        for metric in REGISTRY.collect():
            for sample in metric.samples:
                if sample.labels.get("server_name") != self.hs.hostname:
                    continue
                if sample.name == "synapse_storage_transaction_time_count_total":
                    desc = sample.labels["desc"]
                    if desc.startswith("federation_admin_"):
                        name = desc.removeprefix("federation_admin_")
                        found[name] = int(sample.value)
                elif sample.name == f"{PREFIX}updated_timestamp_seconds":
                    self.updated_s = sample.value
                elif sample.name == f"{PREFIX}destinations":
                    self.known = (self.known or 0) + sample.value
        return found

    def count(self, *, scraped: bool) -> "Counter[str]":
        self.pass_minutes(2, scraped=scraped)
        before = self.scrape()
        self.pass_minutes(MINUTES, scraped=scraped)
        return self.scrape() - before

    def test_scraped(self) -> None:
        """It makes few transactions a minute, however often metrics are read."""
        made = self.count(scraped=True)
        self.assertLessEqual(made.total(), MOST_TRANSACTIONS * MINUTES, made)
        self.assertGreaterEqual(made["summary"], MINUTES // 3)
        self.assertLessEqual(made["heartbeat"], MOST_OF_ANOTHER * MINUTES)
        # Whether servers fail together is read with what outages have to look at.
        self.assertEqual(made["outlook"], 0, made)

    def test_not_scraped(self) -> None:
        """Where nobody reads metrics, nothing is counted for them."""
        made = self.count(scraped=False)
        # Once, as this test has read them.
        self.assertLessEqual(made["summary"], 1)
        self.assertLessEqual(made["failing_by_kind"], 1)

    def test_how_old(self) -> None:
        """What is scraped is two minutes old, and some seconds."""
        self.pass_minutes(3, scraped=True)
        self.add_destination(NAME, 0, 0, None)
        self.pass_minutes(3, scraped=True)
        self.scrape()
        assert self.updated_s is not None
        self.assertLess(self.clock.time() - self.updated_s, 150)
        self.assertEqual(self.known, 1)
