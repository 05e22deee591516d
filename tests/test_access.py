# SPDX-License-Identifier: Apache-2.0
"""Who is let in: every route of the route list, for everyone who might knock."""

import re
from typing import Any
from unittest import mock

from module_case import ModuleTestCase
from parameterized import parameterized

from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.homeserver.federation import Federation

EVERY_ROUTE = [(route.method, re.sub("<[^>]+>", "a", route.path)) for route in ROUTES]

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "BREW")


class AccessTestCase(ModuleTestCase):
    """Walks over the route list, so that a new route cannot be forgotten."""

    def setUp(self) -> None:
        super().setUp()
        # Contacts would go out to nowhere.
        patcher = mock.patch.object(Federation, "probe", side_effect=OSError)
        patcher.start()
        self.addCleanup(patcher.stop)

    def default_config(self) -> dict[str, Any]:
        # Diagnoses would, too.
        return {**super().default_config(), "federation_domain_whitelist": []}

    @parameterized.expand(EVERY_ROUTE)
    def test_no_token(self, method: str, path: str) -> None:
        """Without a token: 401 M_MISSING_TOKEN, in JSON."""
        self.check(method, path, None, 401, "M_MISSING_TOKEN")

    @parameterized.expand(EVERY_ROUTE)
    def test_unknown_token(self, method: str, path: str) -> None:
        """With a token that is none: 401 M_UNKNOWN_TOKEN."""
        self.check(method, path, "syt_no_such_token", 401, "M_UNKNOWN_TOKEN")

    @parameterized.expand(EVERY_ROUTE)
    def test_ordinary_user(self, method: str, path: str) -> None:
        """With the token of a user who is no admin: 403 M_FORBIDDEN."""
        self.check(method, path, self.user_token, 403, "M_FORBIDDEN")

    @parameterized.expand(EVERY_ROUTE)
    def test_ordinary_user_learns_nothing(self, method: str, path: str) -> None:
        """A user who is no admin gets 403 before anything is looked at or changed."""
        self.add_destination("a", 10, 20, 5)
        self.check(method, path + "?limit=x", self.user_token, 403, "M_FORBIDDEN")
        (row,) = self.get_json("/_synapse/admin/v1/federation/destinations")[
            "destinations"
        ]
        self.assertEqual(row["retry_last_ts"], 10)

    @parameterized.expand(EVERY_ROUTE)
    def test_admin(self, method: str, path: str) -> None:
        """An admin is let in; 403 is never used for anything else."""
        self.add_destination("a", 10, 20, 5)
        self.assertIn(self.ask(method, path).code, (200, 400, 404))

    @parameterized.expand(EVERY_ROUTE)
    def test_token_in_the_query(self, method: str, path: str) -> None:
        """A token as a query parameter counts as in all of Synapse."""
        self.add_destination("a", 10, 20, 5)
        channel = self.ask(
            method, f"{path}?access_token={self.admin_token}", token=None
        )
        self.assertIn(channel.code, (200, 400, 404))

    @parameterized.expand(sorted({path for _, path in EVERY_ROUTE}))
    def test_wrong_methods(self, path: str) -> None:
        """What a path has no use for is 405 M_UNRECOGNIZED, token or not."""
        right = {method for method, known in EVERY_ROUTE if known == path}
        for method in set(METHODS) - right:
            for token in (None, self.user_token, self.admin_token):
                self.check(method, path, token, 405, "M_UNRECOGNIZED")

    @parameterized.expand(sorted({path for _, path in EVERY_ROUTE}))
    def test_preflight(self, path: str) -> None:
        """Every path answers the preflight of a browser."""
        channel = self.ask("OPTIONS", path, token=None)
        self.assertIn(channel.code, (200, 204))

    def check(
        self, method: str, path: str, token: str | None, code: int, errcode: str
    ) -> None:
        channel: Any = self.ask(method, path, token=token)
        self.assertEqual(channel.code, code, (method, path, channel.result))
        self.assertEqual(channel.json_body["errcode"], errcode)
        self.assertIn("error", channel.json_body)
