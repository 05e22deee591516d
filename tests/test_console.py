# SPDX-License-Identifier: Apache-2.0
"""The console: who comes in, what each page says to whom, with which headers."""

import re
from typing import Any
from urllib.parse import urlencode

from module_case import ModuleTestCase

from synapse_federation_admin.console import ROUTES
from synapse_federation_admin.console.cookie import COOKIE, Origin, Session

CONSOLE = "/_synapse/admin/federation"
FORM = b"application/x-www-form-urlencoded"

PAGES = [re.sub("<[a-z_]+>", "a", r.path) for r in ROUTES if r.method == "GET"]
CHANGES = [re.sub("<[a-z_]+>", "a", r.path) for r in ROUTES if r.method == "POST"]
OPEN = {r.path for r in ROUTES if r.opens}

ID = "a" * 22
OTHER_ID = "b" * 22


class ConsoleTestCase(ModuleTestCase):
    """Makes requests as a browser does."""

    def visit(
        self,
        method: str,
        path: str,
        token: str | None = None,
        form: dict[str, str] | None = None,
        headers: list[tuple[str, str]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make a request with the cookie of a session of the id `ID`."""
        cookies = []
        if token is not None:
            value = Session(ID, Origin.PASTED, token).value()
            cookies = [("Cookie", f"{COOKIE}={value}")]
        return self.make_request(
            method,
            CONSOLE + path,
            content=urlencode(form or {}),
            content_type=FORM if method == "POST" else None,
            custom_headers=[*cookies, *(headers or [])],
            shorthand=False,
            **kwargs,
        )

    def form_token(self, token: str) -> str:
        """Return the token of the forms of the session `ID`."""
        body = self.visit("GET", "/keys", token).text_body
        (found,) = re.findall('name="csrf" value="([0-9a-f]+)"', body)
        return found

    def test_pages(self) -> None:
        """Every page: 401 without a session, or with one that ended; 403 for a user
        who is no admin; for an admin 200, 303, or 404 where nothing is of that name."""
        for path in set(PAGES) - OPEN:
            for token in (None, "", "syt_ended"):
                channel = self.visit("GET", path, token)
                self.assertEqual(channel.code, 401, (path, channel.result))
                self.assertIn("/session?next=", channel.text_body)
            channel = self.visit("GET", path, self.user_token)
            self.assertEqual(channel.code, 403, (path, channel.result))
            self.assertIn("no server admin", channel.text_body)
            channel = self.visit("GET", path, self.admin_token)
            self.assertIn(channel.code, (200, 303, 404), (path, channel.result))
        for path in OPEN & set(PAGES):
            self.assertEqual(self.visit("GET", path).code, 200, path)
