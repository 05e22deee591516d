# SPDX-License-Identifier: Apache-2.0
"""v2: what of this module works here."""

import logging

from pydantic import Field
from synapse.module_api import JsonDict
from twisted.internet.defer import CancelledError

from synapse_federation_admin import __version__
from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Answer, Nothing
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.homeserver.process import SYNAPSE_VERSION
from synapse_federation_admin.storage.definitions import VERSIONS


class FeatureState(Answer):
    """Whether a feature is on."""

    on: bool = Field(description="Whether it is on in this process.")
    reason: str | None = Field(description="Why it is off; null if it is on.")


class TablesState(Answer):
    """Of which version the module's tables are."""

    code_version: int = Field(description="That of this module's code.")
    database_version: int | None = Field(
        description="That of the tables in the database, 0 if there are none; null if "
        "the database does not say it."
    )
    reason: str | None = Field(
        description="Why the database does not say it; null if it does."
    )
    compat_version: int | None = Field(
        description="The oldest version of the code that may use those tables; null if "
        "the database does not say it."
    )


class Status(Answer):
    """What works here."""

    module_version: str = Field(description="The version of this module.")
    synapse_version: str = Field(description="The version of Synapse.")
    instance: str = Field(description="The name of this process.")
    features: dict[str, FeatureState] = Field(description="All features, by name.")
    # Not `schema`, which is a method of pydantic's models.
    tables: TablesState = Field(description="The tables of this module's own.")


logger = logging.getLogger(__name__)

# How long an answer waits for the database.
_WAIT_MS = 3000


@operation(Nothing, Status)
async def get_status(asked: Asked, _: Nothing) -> JsonDict:
    """Tell what of this module works in this process, and why the rest does not.

    GET /_synapse/admin/v2/federation/status

    200 OK

        {
            "module_version": "0.1.0",
            "synapse_version": "1.163.2",
            "instance": "main",
            "features": {
                "reconnect": {"on": true, "reason": null},
                "history": {
                    "on": false,
                    "reason": "synapse.util.retryutils does not log '...'"
                },
                ...
            },
            "tables": {
                "code_version": 5,
                "database_version": 5,
                "compat_version": 3,
                "reason": null
            }
        }

    Both versions of the database are null while it cannot be used, or does not answer
    for some seconds.
    """
    services, features = asked.services, asked.services.features
    stored, reason = None, None
    try:
        stored = await services.homeserver.single_flight.run(
            "federation_admin_status",
            (),
            services.tables.stored_version,
            joins=True,
            timeout_ms=_WAIT_MS,
        )
    except CancelledError:
        raise
    except TimeoutError:
        reason = f"the database has not answered for {_WAIT_MS // 1000} seconds"
    except Exception as e:
        logger.warning("Cannot read the version of the tables: %s", e)
        reason = "the database cannot be read: the log says why"
    return {
        "module_version": __version__,
        "synapse_version": SYNAPSE_VERSION,
        "instance": services.homeserver.instance_name,
        "features": {
            feature.value: {
                "on": features.is_on(feature),
                "reason": features.reason(feature),
            }
            for feature in Feature
        },
        "tables": {
            "code_version": VERSIONS[-1].number,
            "database_version": stored.version if stored else None,
            "compat_version": stored.compat_version if stored else None,
            "reason": reason,
        },
    }
