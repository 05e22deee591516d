# SPDX-License-Identifier: Apache-2.0
"""Opens the console as a person does, by the link that signs in once."""

import re
from html import unescape

import httpx

from synapse_federation_admin.playground.client import NO_AUTHORITIES, quoted
from synapse_federation_admin.playground.control import Control
from synapse_federation_admin.playground.processes import PlaygroundError
from synapse_federation_admin.playground.remote import RemoteServer
from synapse_federation_admin.playground.world import Playground

_TIMEOUT_S = 30


def check_console(playground: Playground, remote: RemoteServer, headline: str) -> None:
    """Open the overview and a server's page; both have to say what is so.

    Args:
        playground: started and prepared.
        remote: one of the servers that fail.
        headline: why, in the console's words.

    Raises:
        PlaygroundError: a page does not answer, or says something else.
    """
    failing, total = len(playground.failing), len(playground.servers)
    name = remote.server_name
    with (
        Control(playground) as control,
        httpx.Client(
            follow_redirects=True,
            timeout=_TIMEOUT_S,
            trust_env=False,
            verify=NO_AUTHORITIES,
        ) as browser,
    ):
        overview = _open(browser, control.sign_in_url)
        _require(overview, f"{failing} of {total} servers are failing")
        _require(overview, playground.admin.user_id)
        page = _open(browser, f"{overview.url}servers/{quoted(name)}")
        for text in (name, "down for", headline):
            _require(page, text)


def _open(browser: httpx.Client, url: str) -> httpx.Response:
    try:
        page = browser.get(url)
    except httpx.HTTPError as e:
        raise PlaygroundError(f"The console does not answer at {url}: {e}") from e
    if page.status_code != httpx.codes.OK:
        raise PlaygroundError(
            f"The console answers {page.status_code} at {page.url}: {_text(page)[:500]}"
        )
    return page


def _require(page: httpx.Response, text: str) -> None:
    if text not in _text(page):
        raise PlaygroundError(
            f"The console should say {text!r} at {page.url}; it says: {_text(page)}"
        )


def _text(page: httpx.Response) -> str:
    """Return what a person reads on a page."""
    plain = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", page.text, flags=re.DOTALL)
    return " ".join(unescape(plain).split())
