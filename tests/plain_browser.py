# SPDX-License-Identifier: Apache-2.0
"""What a browser does without a script: pages, links, forms, redirects and cookies."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import lxml.html

from synapse_federation_admin.playground.client import CONSOLE


class Page:
    """What was answered, and where."""

    def __init__(self, response: httpx.Response) -> None:
        self.url = str(response.url)
        self.status = response.status_code
        self.headers = response.headers
        self.text = response.text
        self.tree: Any = lxml.html.fromstring(response.text or "<p></p>")

    @property
    def path(self) -> str:
        """Its path below the console, with the query; else its whole address."""
        base, found, rest = self.url.partition(CONSOLE.rstrip("/"))
        return rest if found and base.count("/") == 2 else self.url

    def form(self, action: str) -> Any:
        """Return the form that is sent to a path which ends so."""
        sent = (f for f in self.tree.forms if (f.action or "").endswith(action))
        form = next(sent, None)
        assert form is not None, (action, self.status, self.url, self.text)
        return form

    def link(self, text: str) -> str:
        found = [a for a in self.tree.iter("a") if text in a.text_content()]
        assert found, (text, self.status, self.url, self.tree.text_content())
        return str(found[0].get("href"))


class PlainBrowser:
    """A browser with cookies of its own, at one address of the homeserver."""

    def __init__(
        self,
        base: str,
        verify: ssl.SSLContext,
        headers: Mapping[str, str],
        address: str | None = None,
    ) -> None:
        """Open one.

        Args:
            base: Where it reaches the homeserver.
            verify: Whom it trusts.
            headers: What it sends with every request.
            address: Its own, in 127.0.0.0/8.
        """
        self.base = base
        # Every cookie that it was told to keep, as it was told.
        self.told: list[str] = []
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(
                verify=verify, local_address=address, trust_env=False
            ),
            timeout=60,
            headers=headers,
        )

    def __enter__(self) -> "PlainBrowser":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that it keeps, by name."""
        return {
            cookie.name: cookie.value or ""
            for cookie in self._client.cookies.jar
            if cookie.name.startswith("federation_admin")
        }

    def open(self, path: str = "/") -> Page:
        """Open a page of the console; or an address, typed in."""
        address = path if "://" in path else f"{self.base}{CONSOLE.rstrip('/')}{path}"
        return self._go("GET", address, "none")

    def follow(self, page: Page, text: str) -> Page:
        """Follow a link."""
        address = urljoin(page.url, page.link(text))
        return self._go("GET", address, self._site(page.url, address))

    def send(self, page: Page, action: str, **fields: str) -> Page:
        """Send a form of a page."""
        form = page.form(action)
        address = urljoin(page.url, form.action)
        values = {**dict(form.form_values()), **fields}
        site = self._site(page.url, address)
        if form.method == "GET":
            return self._go("GET", f"{address}?{httpx.QueryParams(values)}", site)
        return self._go("POST", address, site, values)

    def raw(self, method: str, address: str, **headers: str) -> httpx.Response:
        """Send anything; return what comes, and go nowhere."""
        sent = {
            name.replace("_", "-").encode(): value.encode("latin-1")
            for name, value in headers.items()
        }
        return self._client.request(method, address, headers=sent)

    def post(self, path: str, form: Mapping[str, str], **headers: str) -> Page:
        """Send what no page of ours does."""
        address = f"{self.base}{CONSOLE.rstrip('/')}{path}"
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return Page(self._request("POST", address, form, names))

    @staticmethod
    def _site(here: str, there: str) -> str:
        a, b = urlsplit(here), urlsplit(there)
        is_same = (a.scheme, a.netloc) == (b.scheme, b.netloc)
        return "same-origin" if is_same else "cross-site"

    def _go(
        self,
        method: str,
        address: str,
        site: str,
        form: Mapping[str, str] | None = None,
    ) -> Page:
        for _ in range(20):
            headers = {"Sec-Fetch-Site": site}
            if method == "POST":
                # No page of ours lets a referrer out.
                headers["Origin"] = "null"
            response = self._request(method, address, form, headers)
            location = response.headers.get("Location")
            if location is None:
                return Page(response)
            there = urljoin(address, location)
            if self._site(address, there) != "same-origin":
                site = "cross-site"
            method, address, form = "GET", there, None
        raise AssertionError(f"It leads round: {address}")

    def _request(
        self,
        method: str,
        address: str,
        form: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> httpx.Response:
        response = self._client.request(method, address, data=form, headers=headers)
        self.told += response.headers.get_list("Set-Cookie")
        for cookie in self._client.cookies.jar:
            # Browsers trust the machine itself as they trust https.
            if cookie.domain == "127.0.0.1":
                cookie.secure = False
        return response
