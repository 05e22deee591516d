# SPDX-License-Identifier: Apache-2.0
"""What changes many servers: first the dry run, then the question, then the run."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import attr
from synapse.module_api.errors import SynapseError

from synapse_federation_admin.api import (
    cap_backoff as cap,
    forget as forgetting,
    reconnect_many as reconnecting,
)
from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api.schemas.destinations import ChangeFilter
from synapse_federation_admin.console.pages.servers import query_of
from synapse_federation_admin.console.render import segment, url
from synapse_federation_admin.console.visit import Answered, Page, See, Visit
from synapse_federation_admin.durations import parse_duration
from synapse_federation_admin.repair import criteria
from synapse_federation_admin.wording import outcomes

# The filters of the list.
_FILTERS = tuple(ChangeFilter.model_fields)


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Selection:
    """Which servers somebody has selected.

    Attributes:
        names: Their names; empty: all that the filters keep.
        filters: The filters, as the API takes them.
        fields: Both, as the fields of a form: each a name and a value.
    """

    names: tuple[str, ...]
    filters: Mapping[str, Any]
    fields: tuple[tuple[str, str], ...]

    @property
    def told(self) -> str:
        """Which they are, in words."""
        if self.names:
            return _servers(len(self.names))
        if not self.filters:
            return "all that are failing"
        wanted = ChangeFilter.model_validate(dict(self.filters)).wanted
        return outcomes.which(criteria.shown(wanted))


def selection_of(visit: Visit) -> Selection:
    """Return what is selected: `name`, repeated; or `all=true` and the filters."""
    names = tuple(dict.fromkeys(name for name in visit.texts("name") if name))
    if names:
        return Selection(names, {}, tuple(("name", name) for name in names))
    filters = {key: value for key, value in query_of(visit).items() if key in _FILTERS}
    fields = [("all", "true")]
    for key, value in filters.items():
        fields += [
            (key, each) for each in ([value] if isinstance(value, str) else value)
        ]
    return Selection((), filters, tuple(fields))


# -- reconnect -------------------------------------------------------------------------


async def reconnect(visit: Visit) -> Answered:
    """Begin a run that reconnects, and lead to it.

    POST /_synapse/admin/federation/reconnect
    """
    body: dict[str, Any] = {
        **_reconnect_of(selection_of(visit)),
        "reason": visit.text("reason"),
    }
    try:
        if rate := visit.text("per_second").strip():
            body["per_second"] = _number(rate)
        return await _begin(visit, reconnecting.reconnect_many, body)
    except SynapseError as e:
        return await ask_reconnect(visit, e)


def _reconnect_of(selected: Selection) -> dict[str, Any]:
    if selected.names:
        return {"destinations": list(selected.names), "ignore_unknown": True}
    if selected.filters:
        return {"filter": dict(selected.filters)}
    return {"all_failing": True}


async def ask_reconnect(visit: Visit, error: SynapseError | None = None) -> Page:
    """Tell which servers would be contacted, and ask.

    GET /_synapse/admin/federation/reconnect?name=a&name=b or ?all=true&<filters>
    """
    selected = selection_of(visit)
    found = await visit.ask(
        reconnecting.reconnect_many, {**_reconnect_of(selected), "dry_run": True}
    )
    most = visit.services.config.bulk_max_per_second
    rate = min(5, most)
    return _page(
        visit,
        "reconnect_many.html",
        _title("reconnect", found.matched),
        error,
        selected=selected,
        found=found,
        most=most,
        rate=rate,
        takes_ms=max(1, round(found.matched / rate)) * 1000,
    )


# -- forget ----------------------------------------------------------------------------


async def forget(visit: Visit) -> Answered:
    """Begin a run that forgets, and lead to it.

    POST /_synapse/admin/federation/forget
    """
    selected = selection_of(visit)
    try:
        return await _begin(
            visit,
            forgetting.forget_many,
            {
                **_forget_of(selected),
                "force": visit.text("force") == "true",
                "drop_to_device": visit.text("drop_to_device") == "true",
                "reason": visit.text("reason"),
                "dry_run": False,
            },
        )
    except SynapseError as e:
        return await ask_forget(visit, e)


def _forget_of(selected: Selection) -> dict[str, Any]:
    if selected.names:
        return {"destinations": list(selected.names), "ignore_unknown": True}
    return {"filter": dict(selected.filters)}


async def ask_forget(visit: Visit, error: SynapseError | None = None) -> Answered:
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
        forgetting.forget_many,
        {**_forget_of(selected), "force": True, "dry_run": True},
    )
    is_young = False
    if selected.filters:
        least = ChangeFilter.model_validate(dict(selected.filters)).failing_for or 0
        is_young = least < forgetting.DEAD_FOR_MS
    is_asked = is_young and visit.text("force") != "true"
    if error is not None and error.code == HTTPStatus.BAD_REQUEST and is_asked:
        error = invalid_param(
            "This filter does not ask for 30 days of failure. Tick below that they are "
            "to be forgotten all the same, or filter again."
        )
    return _page(
        visit,
        "forget_many.html",
        _title("forget", found.forgotten),
        error,
        selected=selected,
        found=found,
        is_young=is_young,
    )


# -- cap backoffs ----------------------------------------------------------------------


async def cap_backoff(visit: Visit) -> Answered:
    """Begin a run that shortens backoffs, and lead to it.

    POST /_synapse/admin/federation/cap_backoff
    """
    longest_ms = parse_duration(visit.text("longest"))
    if longest_ms is None:
        return await ask_cap(visit)
    body = {"max_retry_interval_ms": longest_ms, "reason": visit.text("reason")}
    try:
        return await _begin(visit, cap.cap_backoff, body)
    except SynapseError as e:
        return await ask_cap(visit, e)


async def ask_cap(visit: Visit, error: SynapseError | None = None) -> Page:
    """Ask how long backoffs may be; tell which are longer, and ask again.

    GET /_synapse/admin/federation/cap_backoff?longest=1d
    """
    longest = visit.text("longest").strip()
    longest_ms = parse_duration(longest) if longest else None
    found = None
    if longest_ms:
        body = {"max_retry_interval_ms": longest_ms, "dry_run": True}
        found = await visit.ask(cap.cap_backoff, body)
    return _page(
        visit,
        "cap_backoff.html",
        "Cap backoffs",
        error,
        longest=longest,
        longest_ms=longest_ms,
        found=found,
    )


# -- all of them -----------------------------------------------------------------------


async def _begin(visit: Visit, operation: Operation[Any], body: Any) -> See:
    run = await visit.ask(operation, body)
    return See(f"/runs/{segment(run.id)}")


def _page(
    visit: Visit, template: str, title: str, error: SynapseError | None, **more: Any
) -> Page:
    """Return a page that asks; after an error it says what is wrong.

    Raises:
        SynapseError: It is none that the page can tell.
    """
    if error is not None and error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise error
    # That of the run which has not ended yet.
    run_id = error.error_dict(None).get("id") if error else None
    context = {
        "title": title,
        "problem": None if run_id or error is None else error.msg,
        "run_path": f"/runs/{segment(run_id)}" if isinstance(run_id, str) else None,
        "reason": visit.text("reason"),
        "back": _back(visit),
        **more,
    }
    return Page(template, context, error.code if error else HTTPStatus.OK)


def _back(visit: Visit) -> str:
    selected = selection_of(visit)
    return url("/servers", **selected.filters)


def _title(what: str, number: int) -> str:
    if not number:
        return f"There is nothing to {what}"
    return f"{what.capitalize()} {_servers(number)}"


def _servers(number: int) -> str:
    return "1 server" if number == 1 else f"{number:,} servers"


def _number(text: str) -> float | str:
    """Return a number; what is none stays a text, which the API refuses."""
    try:
        return float(text)
    except ValueError:
        return text
