# SPDX-License-Identifier: Apache-2.0
"""v2: names for which something waits, and which are in no list."""

from functools import partial

from pydantic import Field
from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api._paging import Paging
from synapse_federation_admin.api.schemas.model import Answer, NextToken, Paged
from synapse_federation_admin.api.schemas.values import Shown, shown
from synapse_federation_admin.destinations.backlog import Backlog, unlisted_txn


class UnlistedName(Answer):
    """A name for which something waits, and which Synapse has no row for."""

    destination: str = Field(description="The name.")
    backlog: Shown[Backlog] = Field(description="What waits for it.")


class UnlistedPage(Answer):
    """A page of such names."""

    unlisted: list[UnlistedName] = Field(description="In the order of their names.")
    next_token: NextToken = None


@operation(Paged, UnlistedPage)
async def list_unlisted(asked: Asked, query: Paged) -> JsonDict:
    """List names for which something waits, but which Synapse has no row for, by page.

    GET /_synapse/admin/v2/federation/unlisted

    200 OK

        {
            "unlisted": [{"destination": "new.example", "backlog": {...}}],
            "next_token": "xBp0..."
        }

    How many there are is in the summary. A page costs a pass over what waits.
    """
    services, paging = asked.services, Paging(query, "unlisted")
    read_txn = partial(unlisted_txn, after=paging.after or "", limit=paging.limit)
    run = services.homeserver.run_db_interaction
    names = await services.reader.pass_over(
        lambda: run("federation_admin_list_unlisted", read_txn)
    )
    some, next_token = paging.cut(names, lambda last: last)
    backlogs = await services.backlog.of(some)
    return {
        "unlisted": [
            {"destination": name, "backlog": shown(backlogs[name])} for name in some
        ],
        **next_token,
    }
