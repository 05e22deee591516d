# SPDX-License-Identifier: Apache-2.0
"""What changes one server, and has to be asked first: reset, forget."""

from http import HTTPStatus
from typing import Any

from synapse.module_api.errors import SynapseError

from synapse_federation_admin.api import forget as forgetting
from synapse_federation_admin.api.v1_reset_connection import reset_connection_v1
from synapse_federation_admin.api.v2_destinations import get_destination
from synapse_federation_admin.console.render import segment, url
from synapse_federation_admin.console.visit import Answered, Page, See, Visit
from synapse_federation_admin.homeserver.features import Feature


async def ask_reset(visit: Visit) -> Answered:
    """Say what a reset does, and ask.

    GET /_synapse/admin/federation/servers/<name>/reset
    """
    name = visit.parameters["name"]
    server = await visit.ask(get_destination, destination=name)
    return Page(
        "reset.html",
        {"title": f"Reset {name}", "server": server, "path": _path(name)},
    )


async def reset(visit: Visit) -> Answered:
    """Clear the retry timings of a server, and lead to it.

    POST /_synapse/admin/federation/servers/<name>/reset
    """
    name = visit.parameters["name"]
    visit.services.features.require(Feature.V1_RESET)
    await reset_connection_v1(visit.asked, name)
    return See(_path(name))


async def forget(visit: Visit) -> Answered:
    """Forget a server, and lead to what the audit says of it.

    POST /_synapse/admin/federation/servers/<name>/forget
    """
    name = visit.parameters["name"]
    body = {
        "dry_run": False,
        "drop_to_device": visit.text("drop_to_device") == "true",
        "reason": visit.text("reason"),
    }
    try:
        await visit.ask(forgetting.forget, body, destination=name)
    except SynapseError as e:
        if e.code not in (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT):
            raise
        return await ask_forget(visit, e)
    return See(url("/audit", destination=name).removeprefix(url("")))


async def ask_forget(visit: Visit, error: SynapseError | None = None) -> Page:
    """Tell what would be lost of a server, and ask.

    GET /_synapse/admin/federation/servers/<name>/forget
    """
    name = visit.parameters["name"]
    values: dict[str, Any] = {"dry_run": True}
    found = await visit.ask(forgetting.forget, values, destination=name)
    return Page(
        "forget.html",
        {
            "title": f"Forget {name}",
            "found": found,
            "path": _path(name),
            "problem": error.msg if error else None,
            "reason": visit.text("reason"),
        },
        error.code if error else HTTPStatus.OK,
    )


def _path(name: str) -> str:
    return f"/servers/{segment(name)}"
