# SPDX-License-Identifier: Apache-2.0
"""Who is let in: every route of the route list, for everyone who might knock."""

import re
from typing import Any
from unittest import mock

from module_case import ModuleTestCase

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

    def test_no_token(self) -> None:
        """Without a token: 401 M_MISSING_TOKEN, in JSON."""
        for method, path in EVERY_ROUTE:
            self.check(method, path, None, 401, "M_MISSING_TOKEN")

    def test_unknown_token(self) -> None:
        """With a token that is none: 401 M_UNKNOWN_TOKEN."""
        for method, path in EVERY_ROUTE:
            self.check(method, path, "syt_no_such_token", 401, "M_UNKNOWN_TOKEN")

    def test_ordinary_user(self) -> None:
        """With the token of a user who is no admin: 403 M_FORBIDDEN."""
        for method, path in EVERY_ROUTE:
            self.check(method, path, self.user_token, 403, "M_FORBIDDEN")

    def test_ordinary_user_learns_nothing(self) -> None:
        """A user who is no admin gets 403 before anything is looked at or changed."""
        self.add_destination("a", 10, 20, 5)
        for method, path in EVERY_ROUTE:
            self.check(method, path + "?limit=x", self.user_token, 403, "M_FORBIDDEN")
            (row,) = self.get_json("/_synapse/admin/v1/federation/destinations")[
                "destinations"
            ]
            self.assertEqual(row["retry_last_ts"], 10, (method, path))

    def test_admin(self) -> None:
        """An admin is let in; 403 is never used for anything else."""
        for method, path in EVERY_ROUTE:
            self.add_destination("a", 10, 20, 5)
            code = self.ask(method, path).code
            self.assertIn(code, (200, 400, 404), (method, path))

    def test_token_in_the_query(self) -> None:
        """A token as a query parameter counts as in all of Synapse."""
        for method, path in EVERY_ROUTE:
            self.add_destination("a", 10, 20, 5)
            with_token = f"{path}?access_token={self.admin_token}"
            code = self.ask(method, with_token, token=None).code
            self.assertIn(code, (200, 400, 404), (method, path))

    def test_wrong_methods(self) -> None:
        """What a path has no use for is 405 M_UNRECOGNIZED, token or not."""
        for path in sorted({path for _, path in EVERY_ROUTE}):
            right = {method for method, known in EVERY_ROUTE if known == path}
            for method in set(METHODS) - right:
                for token in (None, self.user_token, self.admin_token):
                    self.check(method, path, token, 405, "M_UNRECOGNIZED")

    def test_preflight(self) -> None:
        """Every path answers the preflight of a browser."""
        for path in sorted({path for _, path in EVERY_ROUTE}):
            self.assertIn(self.ask("OPTIONS", path, token=None).code, (200, 204), path)

    def check(
        self, method: str, path: str, token: str | None, code: int, errcode: str
    ) -> None:
        channel: Any = self.ask(method, path, token=token)
        self.assertEqual(channel.code, code, (method, path, channel.result))
        self.assertEqual(channel.json_body["errcode"], errcode, (method, path))
        self.assertIn("error", channel.json_body, (method, path))
