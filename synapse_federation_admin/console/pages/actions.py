# SPDX-License-Identifier: Apache-2.0
"""What changes servers: first the dry run, then the question, then it is done."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from synapse.module_api.errors import SynapseError

from synapse_federation_admin import limits
from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.api.schemas.destinations import ChangeFilter
from synapse_federation_admin.console.pages.servers import query_of
from synapse_federation_admin.console.render import segment, url
from synapse_federation_admin.console.visit import Answered, Page, See, Visit
from synapse_federation_admin.durations import parse_duration
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.wording import outcomes
from synapse_federation_admin.wording.amounts import counted

# The filters of the list.
_FILTERS = tuple(ChangeFilter.model_fields)


class Selection(NamedTuple):
    """Which servers somebody has selected.

    Attributes:
        names: Their names; empty: all that the filters keep.
        filters: The filters, as the API takes them.
    """

    names: tuple[str, ...]
    filters: Mapping[str, Any]

    @property
    def body(self) -> Mapping[str, Any]:
        """The keys of a body for the API that say which they are."""
        if self.names:
            return {"destinations": list(self.names), "ignore_unknown": True}
        return {"filter": self.filters} if self.filters else {"all_failing": True}

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The same as fields of a form: each a name and a value."""
        if self.names:
            return [("name", name) for name in self.names]
        repeated = [
            (key, [value] if isinstance(value, str) else value)
            for key, value in self.filters.items()
        ]
        filters = [(key, each) for key, values in repeated for each in values]
        return [("all", "true"), *filters]

    @property
    def told(self) -> str:
        """Which they are, in words."""
        if self.names:
            return counted(len(self.names), "server")
        if not self.filters:
            return "all that are failing"
        wanted = ChangeFilter.model_validate(self.filters).wanted
        return outcomes.which(criteria.shown(wanted))

    @property
    def back(self) -> str:
        """The address of the list that they were selected from."""
        return url("/servers", **self.filters)


def selection_of(visit: Visit) -> Selection:
    """Return what is selected: `name`, repeated; or `all=true` and the filters."""
    names = tuple(dict.fromkeys(name for name in visit.texts("name") if name))
    query = {} if names else query_of(visit)
    return Selection(names, {key: query[key] for key in _FILTERS if key in query})


# -- many ------------------------------------------------------------------------------


async def reconnect(visit: Visit) -> Answered:
    """Begin a run that reconnects, and lead to it.

    POST /_synapse/admin/federation/reconnect
    """
    body = selection_of(visit).body
    return await _do(visit, "reconnect_many", body, ask_reconnect)


async def ask_reconnect(visit: Visit, error: SynapseError | None = None) -> Page:
    """Tell which servers would be contacted, and ask.

    GET /_synapse/admin/federation/reconnect?name=a&name=b or ?all=true&<filters>
    """
    selected = selection_of(visit)
    found = await visit.ask("reconnect_many", {**selected.body, "dry_run": True})
    most = visit.services.config.bulk_max_per_second
    rate = min(5, most)
    return _page(
        visit,
        "reconnect_many.html",
        _title("reconnect", found["matched"]),
        error,
        selected=selected,
        found=found,
        most=most,
        rate=rate,
        takes_ms=max(1, round(found["matched"] / rate)) * 1000,
    )


async def forget_many(visit: Visit) -> Answered:
    """Begin a run that forgets, and lead to it.

    POST /_synapse/admin/federation/forget
    """
    body = {**selection_of(visit).body, "dry_run": False}
    return await _do(visit, "forget_many", body, ask_forget_many)


async def ask_forget_many(visit: Visit, error: SynapseError | None = None) -> Answered:
    """Tell what would be lost, and ask.

    GET /_synapse/admin/federation/forget?name=a&name=b or ?all=true&<filters>

    One server, `name=a`, has its own page.
    """
    selected = selection_of(visit)
    if len(selected.names) == 1 and error is None:
        return See(f"/servers/{segment(selected.names[0])}/forget")
    if not selected.names and not selected.filters:
        return Page("forget_which.html", {"title": "Forget servers"})
    found = await visit.ask(
        "forget_many", {**selected.body, "force": True, "dry_run": True}
    )
    is_young = False
    if selected.filters:
        least = ChangeFilter.model_validate(selected.filters).failing_for or 0
        is_young = least < limits.DEAD_FOR_MS
    is_asked = is_young and visit.text("force") != "true"
    if error is not None and error.code == HTTPStatus.BAD_REQUEST and is_asked:
        error = invalid_param(
            "This filter does not ask for 30 days of failure. Tick below that they are "
            "to be forgotten all the same, or filter again."
        )
    return _page(
        visit,
        "forget_many.html",
        _title("forget", found["forgotten"]),
        error,
        selected=selected,
        found=found,
        is_young=is_young,
    )


async def cap_backoff(visit: Visit) -> Answered:
    """Begin a run that shortens backoffs, and lead to it.

    POST /_synapse/admin/federation/cap_backoff
    """
    longest_ms = parse_duration(visit.text("longest"))
    if longest_ms is None:
        return await ask_cap(visit)
    body = {"max_retry_interval_ms": longest_ms}
    return await _do(visit, "cap_backoff", body, ask_cap)


async def ask_cap(visit: Visit, error: SynapseError | None = None) -> Page:
    """Ask how long backoffs may be; tell which are longer, and ask again.

    GET /_synapse/admin/federation/cap_backoff?longest=1d
    """
    longest = visit.text("longest").strip()
    longest_ms = parse_duration(longest) if longest else None
    found = None
    if longest_ms:
        body = {"max_retry_interval_ms": longest_ms, "dry_run": True}
        found = await visit.ask("cap_backoff", body)
    return _page(
        visit,
        "cap_backoff.html",
        "Cap backoffs",
        error,
        longest=longest,
        longest_ms=longest_ms,
        found=found,
    )


# -- one -------------------------------------------------------------------------------


async def reset(visit: Visit) -> Answered:
    """Clear the retry timings of a server, and lead to it.

    POST /_synapse/admin/federation/servers/<name>/reset
    """
    name = visit.parameters["name"]
    await visit.operation("reset_connection_v1")(visit.asked, name)
    return See(f"/servers/{segment(name)}")


async def ask_reset(visit: Visit) -> Page:
    """Say what a reset does, and ask.

    GET /_synapse/admin/federation/servers/<name>/reset
    """
    name = visit.parameters["name"]
    server = await visit.ask("get_destination", destination=name)
    return _page(visit, "reset.html", f"Reset {name}", server=server)


async def forget(visit: Visit) -> Answered:
    """Forget a server, and lead to what the audit says of it.

    POST /_synapse/admin/federation/servers/<name>/forget
    """
    name = visit.parameters["name"]
    return await _do(
        visit,
        "forget",
        {"dry_run": False},
        ask_forget,
        lambda _: f"/audit?{urlencode({'destination': name})}",
        destination=name,
    )


async def ask_forget(visit: Visit, error: SynapseError | None = None) -> Page:
    """Tell what would be lost of a server, and ask.

    GET /_synapse/admin/federation/servers/<name>/forget
    """
    name = visit.parameters["name"]
    found = await visit.ask("forget", {"dry_run": True}, destination=name)
    return _page(visit, "forget.html", f"Forget {name}", error, found=found)


# -- all of them -----------------------------------------------------------------------


def _run_path(run: Any) -> str:
    return f"/runs/{segment(run['id'])}"


async def _do(
    visit: Visit,
    operation: str,
    body: Mapping[str, Any],
    ask: Callable[[Visit, SynapseError], Awaitable[Answered]],
    leads_to: Callable[[Any], str] = _run_path,
    **parameters: str,
) -> Answered:
    """Do what a form asks for; what is refused is told on the page that has asked.

    Args:
        visit: With the form; its fields are keys of the body.
        operation: What does it, by the name of its handler.
        body: The other keys.
        ask: Makes the page that has asked.
        leads_to: Returns the page to go to then, by what the operation gives.
        parameters: Those of the operation's path.

    Raises:
        SynapseError: It is none that the page can tell.
    """
    given = {
        key: visit.text(key) for key in visit.operation(operation).takes.model_fields
    }
    try:
        found = await visit.ask(operation, {**given, **body}, **parameters)
    except SynapseError as e:
        if e.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        return await ask(visit, e)
    return See(leads_to(found))


def _page(
    visit: Visit,
    template: str,
    title: str,
    error: SynapseError | None = None,
    **more: Any,
) -> Page:
    """Return a page that asks; after an error it says what is wrong."""
    # That of the run which has not ended yet.
    run_id = error.error_dict(None).get("id") if error else None
    name = visit.parameters.get("name")
    context = {
        "title": title,
        "path": None if name is None else f"/servers/{segment(name)}",
        "problem": None if run_id or error is None else error.msg,
        "run_path": f"/runs/{segment(run_id)}" if isinstance(run_id, str) else None,
        "reason": visit.text("reason"),
        **more,
    }
    return Page(template, context, error.code if error else HTTPStatus.OK)


def _title(what: str, number: int) -> str:
    if not number:
        return f"There is nothing to {what}"
    return f"{what.capitalize()} {counted(number, 'server')}"
