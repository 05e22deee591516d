# SPDX-License-Identifier: Apache-2.0
"""What the script of a page asks before it reads the page anew."""

from unittest import mock

import pytest
from console_case import ConsoleTestCase
from module_case import FAILING, NAME

from synapse_federation_admin.history.outages import Outages
from synapse_federation_admin.homeserver.features import Feature, Features

pytestmark = pytest.mark.one_synapse

OTHER = "other.example"


class LiveTestCase(ConsoleTestCase):
    """GET changes of the console."""

    def setUp(self) -> None:
        # It would bring what is written here up to date.
        self.patch(Outages, "start", lambda _: None)
        super().setUp()

    def test_changes(self) -> None:
        """It tells whose requests failed, who was changed, and which processes run."""
        self.reactor.advance(1000)
        self.add_destination(NAME, *FAILING)
        before = self.visit("GET", "/changes", self.admin_token).json_body
        self.assertEqual((before["failed"], before["audit"]), ([], []))
        self.assertFalse(before["is_complete"])
        self.reactor.advance(6)
        self.insert_failure(OTHER, "dns_failed", self.clock.time_msec())
        reset = self.send(f"/servers/{NAME}/reset", self.admin_token)
        self.assertEqual(reset.code, 303)

        path = f"/changes?since={before['as_of_ts']}"
        channel = self.visit("GET", path, self.admin_token)

        found = channel.json_body
        self.assertEqual(
            channel.headers.getRawHeaders("Content-Type"), ["application/json"]
        )
        self.assertTrue(found["is_complete"])
        self.assertEqual((found["failed"], found["audit"]), ([OTHER], [NAME]))
        self.assertIn(["main", "running"], found["processes"])

    def test_parts(self) -> None:
        """What a change may be of is live: all that is known of a server, the list, and
        the last entries of the audit, but not those before.

        What an admin has done is known long before an outage is found to be over.
        """
        self.add_destination(NAME, *FAILING)
        page = self.visit("GET", f"/servers/{NAME}", self.admin_token).text_body
        ids = ("status", "advice", "why", "days", "waits", "affected", "tell", "audit")
        for part in ids:
            live = f'id="{part}" data-live="failed:5 came_back:5 audit:5 processes:15"'
            self.assertIn(live, page)
        page = self.visit("GET", "/servers", self.admin_token).text_body
        self.assertIn('id="rows" data-live="failed:30 came_back:10 audit:10"', page)
        page = self.visit("GET", "/audit", self.admin_token).text_body
        self.assertIn('<section id="entries" data-live="audit:5">', page)

    def test_off(self) -> None:
        """Where it is off, everything may have changed."""
        is_on = Features.is_on

        def is_on_but_one(features: Features, feature: Feature) -> bool:
            return feature is not Feature.AUDIT and is_on(features, feature)

        with mock.patch.object(Features, "is_on", is_on_but_one):
            found = self.visit("GET", "/changes", self.admin_token).json_body
        self.assertFalse(found["is_complete"])
        self.assertEqual(found["failed"], [])

    def test_wrong(self) -> None:
        """What is no time is refused with a page that says so."""
        channel = self.visit("GET", "/changes?since=now", self.admin_token)
        self.assertEqual(channel.code, 400)
        self.assertIn("since", channel.text_body)
