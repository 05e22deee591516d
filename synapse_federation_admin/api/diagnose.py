# SPDX-License-Identifier: Apache-2.0
"""v2: why federation with a server fails, what to do, and whom to ask."""

from synapse.module_api import JsonDict

from synapse_federation_admin.api._base import Asked, unknown_destination
from synapse_federation_admin.api._operation import operation
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.api.schemas.values import shown
from synapse_federation_admin.diagnosis.stages import Diagnosis
from synapse_federation_admin.diagnosis.support import Support


@operation(
    Nothing,
    Diagnosis,
    errors={
        404: "The name is empty.",
        429: "Other diagnoses are under way, and no turn came within a quarter of the "
        "time; `retry_after_ms` says when to ask again.",
    },
)
async def diagnose(asked: Asked, _: Nothing, destination: str) -> JsonDict:
    """Go the way that a request to a server takes, and tell what is wrong.

    POST /_synapse/admin/v2/federation/destinations/<destination>/diagnose

    The name may be any, known or not. The body is empty or `{}`. The server gets
    an empty transaction; here nothing is changed, and no retry timing.

    200 OK

        {
            "destination": "matrix.org",
            "checked_ts": 1557332397936,
            "duration_ms": 245,
            "instance": "main",
            "verdict": "failing",
            "kind": "tls_expired",
            "reason": "own_certificate",
            "fault": "them",
            "explanation": "Expired TLS certificate: the server's own certificate ...",
            "advice": "Ask their admin to renew the certificate. ...",
            "stages": [
                {
                    "name": "well_known",
                    "outcome": "ok",
                    "kind": null,
                    "reason": null,
                    "message": "Delegates to matrix-federation.matrix.org:443",
                    "duration_ms": 85,
                    "findings": {...}
                }
            ],
            "stored": {...}
        }

    It takes at most as long as `diagnosis.timeout` says. Who asks while the server is
    being diagnosed gets the same diagnosis.
    """
    if not destination:
        raise unknown_destination()
    found: JsonDict = shown(await asked.services.diagnoses.diagnose(destination))
    return found


@operation(
    Nothing,
    Support,
    errors={
        404: "The name is empty.",
        429: "Diagnoses are under way, and no turn came in time; `retry_after_ms` says "
        "when to ask again.",
    },
)
async def get_support(asked: Asked, _: Nothing, destination: str) -> JsonDict:
    """Tell whom to ask about a server, as it says itself.

    GET /_synapse/admin/v2/federation/destinations/<destination>/support

    200 OK

        {
            "destination": "matrix.org",
            "checked_ts": 1557332397936,
            "url": "https://matrix.org/.well-known/matrix/support",
            "status": 200,
            "contacts": [
                {
                    "role": "m.role.admin",
                    "matrix_id": "@admin:matrix.org",
                    "email_address": null
                }
            ],
            "left_out": 0,
            "support_page": "https://matrix.org/support",
            "error": null,
            "skipped": null
        }

    The server is asked, within ten seconds; what it said is told again for ten minutes.
    """
    if not destination:
        raise unknown_destination()
    found: JsonDict = shown(await asked.services.support.of(destination))
    return found
