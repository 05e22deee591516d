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
        self.patch(Federation, "probe", mock.Mock(side_effect=OSError))

    def default_config(self) -> dict[str, Any]:
        # Diagnoses would, too.
        return {**super().default_config(), "federation_domain_whitelist": []}

    def test_refused(self) -> None:
        """Without a token or with a wrong one 401, who is no admin 403; in JSON.

        That is before anything is looked at or changed.
        """
        self.add_destination("a", 10, 20, 5)
        for method, path in EVERY_ROUTE:
            for wrong in ("", "?limit=x"):
                target = path + wrong
                self.check(method, target, None, 401, "M_MISSING_TOKEN")
                self.check(method, target, "syt_no_such", 401, "M_UNKNOWN_TOKEN")
                self.check(method, target, self.user_token, 403, "M_FORBIDDEN")
            no_ascii = f"{path}?access_token=%C3%A9"
            self.check(method, no_ascii, None, 401, "M_UNKNOWN_TOKEN")
        (row,) = self.get_json("/_synapse/admin/v1/federation/destinations")[
            "destinations"
        ]
        self.assertEqual(row["retry_last_ts"], 10)

    def test_admin(self) -> None:
        """An admin is let in, with a token in the query, too: it is never 403."""
        for method, path in EVERY_ROUTE:
            with_token = f"{path}?access_token={self.admin_token}"
            for target, token in ((path, self.admin_token), (with_token, None)):
                self.add_destination("a", 10, 20, 5)
                code = self.ask(method, target, token=token).code
                self.assertIn(code, (200, 400, 404), (method, target))

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
