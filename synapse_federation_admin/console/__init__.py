# SPDX-License-Identifier: Apache-2.0
"""The console: pages for people, at `/_synapse/admin/federation/`.

resource answers requests; visit is what a page is called with, and render its
templates; cookie, desk and oauth sign people in and out. How a page is added:

1. A row in `ROUTES`: the method, the path below the console with its parameters in
   angle brackets, the handler `<file in pages>.<function>`, what it needs, and, if it
   is in the navigation, its word and its key (`g` and then that key leads to it).
2. The handler, in `console/pages/<file>.py`:

       async def list_runs(visit: Visit) -> Answered:
           found = await visit.ask("list_runs", visit.query)
           return Page("runs.html", {"title": "Runs", "runs": found["runs"]})

   - `visit.parameters["run_id"]` is from the path, decoded; `visit.query` has the
     parameters of the URL (a text, or a list of texts where one is repeated), and
     `visit.form` those of a form that was sent (the same; only in a POST).
   - `await visit.ask(HANDLER, values, **path_parameters)` calls an operation of v2 in
     this process, by the name of its handler, and returns the object of JSON with which
     the API answers; what may be absent is asked for by `get`. There is no other way to
     data. What it raises becomes a page that says so; a page that can do without asks
     by `ask_if_on`.
   - A GET changes nothing. A POST was checked (the form's token, where it comes from)
     before the handler is called, and returns `See("/runs/7")`, which leads there, or a
     page. A handler that has written the answer itself returns None.
3. The template, in `console/templates`, which extends `base.html` (`title` is needed;
   `{% block main %}`). All text is escaped, and control characters in it are shown.
   Beside what the handler gives there are `url("/servers", name=...)`, `csrf_field()`
   for every form with `method="post"`, `now_ms`, `me`, `server_name`, `features_off`
   (a list of name and reason) and `is_on("history")`; the filters are in `render.py`.
   Parts of `macros.html` are imported with `{% from "macros.html" import ... with
   context %}`: `button`, `asking` and `hidden` bring `csrf_field()` along.

The script (`static/console.js`) refreshes what has `data-live` and an `id`, moves with
`j` and `k` over what has `data-row`, and presses with key r what has `data-key="r"`.

What has `data-row` without a value is told from others by where its first link leads.

`data-live="failed:30 runs:5"` refreshes a part when `pages/live.py` tells that there is
a change of these kinds, 30 or 5 seconds after the last time at the soonest; with
`data-about`, only if it is one of that server or run. What no change tells of is read
anew after two minutes; with `data-live="15"`, every 15 seconds.
"""

import re
from functools import cache
from typing import NamedTuple
from urllib.parse import unquote

from synapse_federation_admin.homeserver.features import Feature

__all__ = ["ROUTES", "Route"]


class Route(NamedTuple):
    """A method and a path of the console, and what answers there.

    Attributes:
        method: `GET` or `POST`.
        path: Below the console: `/servers/<name>`.
        handler: `servers.list_servers`, in `console/pages`.
        needs: The features without which the page cannot be.
        nav: Its word in the navigation; None: it is not there.
        key: What leads to it after `g`.
        opens: Whether it is for who has not signed in.
    """

    method: str
    path: str
    handler: str
    needs: tuple[Feature, ...] = ()
    nav: str | None = None
    key: str | None = None
    opens: bool = False

    def match(self, path: str) -> dict[str, str] | None:
        """Return the parameters, decoded, of a path that is as it was sent.

        None if it is another path.
        """
        found = _pattern(self.path).fullmatch(path)
        if found is None:
            return None
        # The end is that of `render.segment`.
        return {
            name: unquote(value).removesuffix("\0")
            for name, value in found.groupdict().items()
        }


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub("<([a-z_]+)>", r"(?P<\1>[^/]+)", path))


_F = Feature

ROUTES: tuple[Route, ...] = (
    Route("GET", "/", "overview.overview", nav="Overview", key="o"),
    Route("GET", "/servers", "servers.list_servers", (_F.LISTS,), "Servers", "s"),
    # Before the one of a server: that would match, too.
    Route("GET", "/servers/export", "servers.export", (_F.LISTS,)),
    Route("GET", "/servers/<name>", "server.show_server", (_F.LISTS,)),
    Route("POST", "/servers/<name>/diagnose", "server.diagnose", (_F.DIAGNOSIS,)),
    Route("POST", "/servers/<name>/reconnect", "server.reconnect", (_F.RECONNECT,)),
    Route("POST", "/servers/<name>/flush", "server.flush_caches", (_F.FLUSH_CACHES,)),
    Route("GET", "/unlisted", "servers.show_unlisted", (_F.BACKLOG,)),
    Route("GET", "/us", "overview.show_us", nav="Us", key="u"),
    Route("GET", "/runs", "runs.list_runs", (_F.AUDIT,), nav="Runs", key="r"),
    Route("GET", "/runs/<run_id>", "runs.show_run", (_F.AUDIT,)),
    Route("POST", "/runs/<run_id>/cancel", "runs.cancel_run", (_F.RUNS,)),
    Route("GET", "/audit", "audit.show_audit", (_F.AUDIT,), nav="Audit", key="a"),
    Route("GET", "/reconnect", "actions.ask_reconnect", (_F.RUNS,)),
    Route("POST", "/reconnect", "actions.reconnect", (_F.RUNS,)),
    Route("GET", "/forget", "actions.ask_forget_many", (_F.RUNS,)),
    Route("POST", "/forget", "actions.forget_many", (_F.RUNS,)),
    Route("GET", "/cap_backoff", "actions.ask_cap", (_F.RUNS,)),
    Route("POST", "/cap_backoff", "actions.cap_backoff", (_F.RUNS,)),
    Route("GET", "/servers/<name>/reset", "actions.ask_reset", (_F.V1_RESET,)),
    Route("POST", "/servers/<name>/reset", "actions.reset", (_F.V1_RESET,)),
    Route("GET", "/servers/<name>/forget", "actions.ask_forget", (_F.RUNS,)),
    Route("POST", "/servers/<name>/forget", "actions.forget", (_F.RUNS,)),
    Route("GET", "/session", "session.show_signing_in", opens=True),
    Route("POST", "/session", "session.sign_in", opens=True),
    Route("GET", "/session/sso", "session.show_single_sign_on", opens=True),
    Route("POST", "/session/end", "session.sign_out", opens=True),
    Route("POST", "/session/begin", "service.begin", opens=True),
    Route("POST", "/session/device", "service.go_on_on_device", opens=True),
    Route("GET", "/session/back", "service.show_back", opens=True),
    Route("POST", "/session/back", "service.come_back", opens=True),
    Route("POST", "/session/refresh", "service.renew", opens=True),
    # For the script.
    Route("GET", "/changes", "live.show_changes"),
)
