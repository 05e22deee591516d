# SPDX-License-Identifier: Apache-2.0
"""v2: what of this module works here."""

import logging
from importlib.metadata import version

from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.api.schemas.status import Status
from synapse_federation_admin.homeserver.features import Feature
from synapse_federation_admin.storage.versions import VERSIONS

logger = logging.getLogger(__name__)


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
            "tables": {"code_version": 3, "database_version": 3, "compat_version": 3}
        }

    Both versions of the database are null while it cannot be used.
    """
    services, features = asked.services, asked.services.features
    try:
        stored = await services.tables.stored_version()
    except Exception as e:
        logger.warning("Cannot read the version of the tables: %s", e)
        stored = None
    return {
        "module_version": version("synapse-federation-admin"),
        "synapse_version": version("matrix-synapse"),
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
        },
    }
