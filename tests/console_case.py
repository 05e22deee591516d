# SPDX-License-Identifier: Apache-2.0
"""Requests of a browser to the console, and what somebody reads on its pages."""

import html
import os
import re
from collections.abc import Collection
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from module_case import ModuleTestCase
from synapse.rest.client import logout

from synapse_federation_admin.console.cookie import Origin, Session, cookie_name

COOKIE = cookie_name("test")
CONSOLE = "/_synapse/admin/federation"
ID = "a" * 22


def words_of(page: str) -> str:
    """Return the text of a page, as somebody reads it."""
    body = page[page.index("<main") : page.index("</main>")]
    without = re.sub(r"<title>.*?</title>|<[^>]*>", " ", body, flags=re.DOTALL)
    return " ".join(html.unescape(without).split())


class ConsoleTestCase(ModuleTestCase):
    """Makes requests as a browser does."""

    servlets = [*ModuleTestCase.servlets, logout.register_servlets]

    def visit(
        self,
        method: str,
        path: str,
        token: str | None = None,
        form: dict[str, str] | Collection[tuple[str, str]] = (),
        headers: list[tuple[str, str]] | None = None,
        session_id: str = ID,
        origin: Origin = Origin.PASTED,
    ) -> Any:
        """Make a request with the cookie of a session; None: without."""
        cookies = []
        if token is not None:
            value = Session(session_id, origin, token).value()
            cookies = [("Cookie", f"{COOKIE}={value}")]
        return self.make_request(
            method,
            CONSOLE + path,
            content=urlencode(form),
            content_type=b"application/x-www-form-urlencoded"
            if method == "POST"
            else None,
            custom_headers=[*cookies, *(headers or [])],
            shorthand=False,
        )

    def page(self, path: str, status: int = 200) -> str:
        """Return a page, as the admin sees it."""
        channel = self.visit("GET", path, self.admin_token)
        self.assertEqual(channel.code, status, channel.result)
        page: str = channel.text_body
        # For a look at it with a browser.
        if folder := os.environ.get("CONSOLE_PAGES"):
            file = re.sub(r"\W+", "-", f"{self._testMethodName}{path}")[:80]
            Path(folder, f"{file}.html").write_text(page)
        return page

    def text(self, path: str, status: int = 200) -> str:
        """Return what the admin reads on a page."""
        return words_of(self.page(path, status))

    def next_page(self, page: str) -> str:
        """Return the page to which one leads."""
        (onwards,) = re.findall(r'rel="next" href="(.*?)"', page)
        return self.page(html.unescape(onwards).removeprefix(CONSOLE))

    def submit(self, page: str, path: str, *fields: tuple[str, str]) -> Any:
        """Send the form of a page that leads to a path, with more fields."""
        (form,) = re.findall(
            f'<form method="post" action="{CONSOLE}{re.escape(path)}".*?</form>',
            page,
            re.DOTALL,
        )
        hidden = re.findall('type="hidden" name="(.*?)" value="(.*?)"', form)
        given = [(name, html.unescape(value)) for name, value in hidden]
        return self.visit("POST", path, self.admin_token, [*given, *fields])

    def led_to(self, channel: Any) -> str:
        """Return the page to which a form has led, below the console."""
        self.assertEqual(channel.code, 303, channel.result)
        (location,) = channel.headers.getRawHeaders("Location")
        return str(location).removeprefix(CONSOLE)

    def form_token(self, token: str, session_id: str = ID) -> str:
        """Return the token that the forms of a session bring."""
        channel = self.visit("GET", "/session", token, session_id=session_id)
        return re.findall('name="csrf" value="([0-9a-f]+)"', channel.text_body)[0]

    def send(self, path: str, by: str = "", **fields: str) -> Any:
        """Send a form as a page of the session `ID` does."""
        form = {**fields, "csrf": self.form_token(by)}
        return self.visit("POST", path, by, form, [("Sec-Fetch-Site", "same-origin")])

    def kept(self, channel: Any) -> Session | None:
        """Return the session that an answer has the browser keep."""
        for line in channel.headers.getRawHeaders("Set-Cookie", []):
            if found := SimpleCookie(line).get(COOKIE):
                self.assertTrue(found["httponly"])
                self.assertEqual(found["samesite"].lower(), "lax")
                self.assertEqual(found["path"], f"{CONSOLE}/")
                self.assertFalse(found["expires"] or found["max-age"])
                return Session.parse(found.value)
        return None
