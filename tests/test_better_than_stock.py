# SPDX-License-Identifier: Apache-2.0
"""The middle column of the table in docs/api.md: what stock Synapse does."""

import pytest
import synapse.rest.admin
from module_case import DESTINATIONS, ModuleTestCase
from synapse.rest.client import login, room
from twisted.web.resource import Resource


@pytest.mark.database
class StockTestCase(ModuleTestCase):
    """Synapse without the module. What passes here is not better any more."""

    servlets = [
        synapse.rest.admin.register_servlets,
        login.register_servlets,
        room.register_servlets,
    ]

    def default_config(self) -> dict[str, object]:
        return {**super().default_config(), "modules": []}

    def create_resource_dict(self) -> dict[str, Resource]:
        resources = super().create_resource_dict()
        self.assertFalse(self.hs._module_web_resources)
        return resources

    def test_limit_0(self) -> None:
        """A `next_token` that leads to itself."""
        self.add_destination("a.example")
        body = self.get_json(DESTINATIONS + "?from=0&limit=0")
        self.assertEqual(body["next_token"], "0")

    def test_beyond_64_bits(self) -> None:
        """500 for a large `from` or `limit`."""
        self.add_destination("a.example")
        for query in (f"from={2**63}", f"limit={2**63}"):
            self.assertEqual(self.ask("GET", f"{DESTINATIONS}?{query}").code, 500)

    def test_odd_integers(self) -> None:
        """What Python's int() takes is taken, though it is no integer elsewhere."""
        for query in ("limit=1_000", "from=%2B5", "limit=%205"):
            self.assertEqual(self.ask("GET", f"{DESTINATIONS}?{query}").code, 200)

    def test_filter_beyond_ascii(self) -> None:
        """A filter that is not ASCII is refused."""
        channel = self.ask("GET", DESTINATIONS + "?destination=%C3%BC")
        self.assertEqual(channel.code, 400)

    def test_wildcards(self) -> None:
        """`_` in the filter stands for any character."""
        self.add_destination("axb.example")
        self.assertEqual(self.names("?destination=a_b"), ["axb.example"])

    def test_null_order(self) -> None:
        """On PostgreSQL, "newest failure first" begins with what does not fail."""
        self.add_destination("fails", 10, 20, 5)
        self.add_destination("fine")
        names = self.names("?order_by=failure_ts&dir=b")
        self.assertEqual(names[0], "fine" if self.is_postgres else "fails")

    def test_manual_update(self) -> None:
        """List and detail disagree after a manual UPDATE."""
        self.store_failure("a", 5)
        self.assertTrue(self.timings("a"))
        self.add_destination("a", 100, 200, 50)
        (listed,) = self.get_json(DESTINATIONS)["destinations"]
        self.assertNotEqual(listed, self.get_json(self.destination_path("a")))

    def test_database_error(self) -> None:
        """A database that refuses a reset is answered with 200."""
        self.add_destination("a", 10, 20, 5)
        self.refuse_changes("destinations")
        channel = self.reset("a")
        self.assertEqual((channel.code, channel.json_body), (200, {}))
