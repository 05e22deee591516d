# SPDX-License-Identifier: Apache-2.0
"""Templates, and how values are written in them.

Filters: `42 | count`, `9000000 | duration` ("2 h 30 min"), `ts | time` (the exact
time), `ts | ago` ("39 d ago"; the exact time on hover), `ts | since` ("39 d"), `ts |
until` ("in 6 h"), `text | cut(80)`, `name | segment` for a name that
becomes a part of a path, `what | findings` (lines), and `value | as_json`. What words
there are for what is all templates can say: `say.outcome(...)`, `cause(kind)`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import DictLoader, Environment, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from synapse.module_api import JsonDict

from synapse_federation_admin.durations import SECOND_MS, duration, utc
from synapse_federation_admin.failures.bounds import shown
from synapse_federation_admin.homeserver.admin_resource import CONSOLE_PATH
from synapse_federation_admin.homeserver.background import Turn
from synapse_federation_admin.wording import causes, diagnosis, outcomes, servers
from synapse_federation_admin.wording.amounts import count, counted, cut, middle

_HERE = Path(__file__).parent

_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


def time(ts: int, text: str | None = None, kind: str = "") -> Markup:
    """Return a `<time>` that shows the exact time, or a text with that on hover."""
    when = utc(ts)
    if when is None:
        return escape(text or f"{ts} ms")
    exact = f"{when.day} {when:%b %Y, %H:%M:%S} UTC"
    iso = f"{when:%Y-%m-%dT%H:%M:%SZ}"
    if text is None:
        return Markup(f'<time datetime="{iso}">{exact}</time>')  # noqa: S704
    attribute = f" data-{kind}" if kind else ""
    return Markup(  # noqa: S704
        f'<time datetime="{iso}" title="{exact}"{attribute}>{escape(text)}</time>'
    )


@pass_context
def ago(context: Context, ts: int) -> Markup:
    """Return how long ago something was, with the exact time on hover."""
    return time(ts, f"{duration(max(context['now_ms'] - ts, SECOND_MS))} ago", "ago")


@pass_context
def since(context: Context, ts: int) -> Markup:
    """Return for how long something is so, with the exact time on hover."""
    return time(ts, duration(max(context["now_ms"] - ts, SECOND_MS)), "since")


@pass_context
def until(context: Context, ts: int) -> Markup:
    """Return in what time something will be, with the exact time on hover."""
    left = ts - context["now_ms"]
    return time(ts, f"in {duration(left)}" if left >= SECOND_MS else "now", "until")


def url(path: str, **query: Any) -> str:
    """Return the address of a page of the console.

    Args:
        path: `/servers`. What is in `<>` of a route has to be quoted: see `segment`.
        query: Its parameters; None is left out, a list is repeated.
    """
    given = {
        key.rstrip("_"): value for key, value in query.items() if value is not None
    }
    tail = f"?{urlencode(given, doseq=True)}" if given else ""
    return f"{CONSOLE_PATH}{path}{tail}"


def segment(name: str) -> str:
    """Return a name as a part of a path.

    One that browsers would take for a folder has an end that no name can have.
    """
    return quote(f"{name}\0" if name in (".", "..") else name, safe="")


_UP, _PART, _DOWN, _NONE = "up", "part", "down", "none"
_WORDS = {_DOWN: "down", _PART: "in part down", _UP: "up", _NONE: "not recorded"}


def _state(share: float | None) -> str:
    if share is None:
        return _NONE
    return _UP if share == 1 else _PART if share else _DOWN


def strip(days: Sequence[JsonDict]) -> tuple[list[tuple[str, str]], str]:
    """Return the last days of a server, as lines of a drawing of 8 units for each day.

    The style sheet parts a line into days, and has each state as high as it is told.

    Returns:
        For each state that occurs, its class and its line; and the same in words.
    """
    lines = dict.fromkeys(_WORDS, "")
    counts = dict.fromkeys(_WORDS, 0)
    begin = 0
    for state, run in groupby(_state(day["share"]) for day in days):
        length = len(list(run))
        lines[state] += f"M{8 * begin} 9h{8 * length - 2}"
        counts[state] += length
        begin += length
    told = ", ".join(f"{n} {_WORDS[state]}" for state, n in counts.items() if n)
    paths = [(state, line) for state, line in lines.items() if line]
    return paths, f"Last {begin} days: {told}"


def _finalize(value: Any) -> Any:
    is_plain = isinstance(value, str) and not isinstance(value, Markup)
    return shown(value) if is_plain else value


@cache
def _environment() -> Environment:
    """Return what keeps compiled templates: one for this process."""
    # Read at once: a homeserver that has no file descriptor left still shows its pages.
    sources = {
        path.name: path.read_text("utf-8") for path in (_HERE / "templates").iterdir()
    }
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ago=ago,
        since=since,
        until=until,
        time=time,
        duration=duration,
        count=count,
        counted=counted,
        cut=cut,
        middle=middle,
        segment=segment,
        findings=diagnosis.told,
        as_json=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    environment.globals.update(
        url=url,
        ages=causes.AGES,
        cause=causes.cause,
        has_cause=servers.is_why,
        is_unanswered=servers.is_unanswered,
        not_allowed=servers.NOT_ALLOWED,
        not_failing=servers.STATUSES,
        nothing_waits=servers.nothing_waits,
        say=outcomes,
        how_far=servers.how_far,
        lasted=servers.lasted,
        signs=diagnosis.SIGNS,
        stages=diagnosis.STAGES,
        states=servers.SENDERS,
        strip=strip,
        waiting=servers.waiting,
    )
    return environment


class Renderer:
    """Makes pages of templates.

    Attributes:
        static: The files that pages need: of each, its media type and what is in it, by
            a name with a hash of that, under which it never changes.
    """

    def __init__(self) -> None:
        names: dict[str, str] = {}
        self.static: dict[str, tuple[str, bytes]] = {}
        for path in (_HERE / "static").iterdir():
            body = path.read_bytes()
            digest = hashlib.sha256(body).hexdigest()[:12]
            names[path.name] = name = f"{path.stem}-{digest}{path.suffix}"
            self.static[name] = (_TYPES[path.suffix], body)
        self._environment = _environment()
        self._environment.globals.update(
            static=lambda name: url(f"/static/{names[name]}")
        )

    def compile(self) -> None:
        """Compile all templates; in a thread, for it takes a good part of a second."""
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    async def render(
        self, template: str, context: Mapping[str, Any], turn: Turn
    ) -> bytes:
        """Return a page.

        Args:
            template: The file.
            context: What is in it.
            turn: Ends while it is made, for that takes long.

        Raises:
            UndefinedError: The template names what is not there.
        """
        found = self._environment.get_template(template)
        pieces = []
        for piece in found.generate(context):
            pieces.append(piece)
            await turn.end_if_long()
        return "".join(pieces).encode("utf-8", "replace")
