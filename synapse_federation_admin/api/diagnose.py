# SPDX-License-Identifier: Apache-2.0
"""v2: why federation with a server fails, and what to do."""

from enum import Enum
from http import HTTPStatus
from typing import Any

import attr
from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, unknown_destination
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._parameters import require_known
from synapse_federation_admin.api._render import render_backlog, render_last_failure
from synapse_federation_admin.diagnosis.diagnose import TooManyDiagnosesError
from synapse_federation_admin.diagnosis.findings import (
    Diagnosis,
    Stage,
    StageName,
    StoredFindings,
)
from synapse_federation_admin.homeserver.errors import LimitExceededError


class DiagnoseServlet(AdminServlet):
    """Go the way that a request to a server takes, and tell what is wrong.

    POST /_synapse/admin/v2/federation/destinations/<destination>/diagnose

    The name may be any, known or not. The body is empty or `{}`. Nothing is changed,
    and no retry timing.

    200 OK

        {
            "destination": "matrix.org",
            "checked_ts": 1557332397936,
            "duration_ms": 245,
            "instance": "main",
            "verdict": "failing",
            "kind": "tls_expired",
            "explanation": "Their certificate expired 3 days ago.",
            "advice": "Nothing you do helps until they renew it: tell them. ...",
            "stages": [
                {
                    "name": "well_known",
                    "outcome": "ok",
                    "kind": null,
                    "message": "It delegates to matrix-federation.matrix.org:443",
                    "duration_ms": 85,
                    "findings": {...}
                }
            ],
            "stored": {...}
        }

    `verdict`: `ok`, `degraded`, `failing`. `stages` are always the same nine, in the
    order of `StageName`; `outcome` is `ok`, `warning`, `failed` or `skipped`, and the
    `findings` of each are in docs/diagnosis.md, null if it was not tried. `stored` are
    the findings of the last stage.

    It takes at most as long as `diagnosis.timeout` says. Who asks while the server is
    being diagnosed gets the same diagnosis.

    Errors: 400 `M_NOT_JSON`, `M_BAD_JSON`, `M_INVALID_PARAM`, 404 `M_NOT_FOUND` for an
    empty name, 429 `M_LIMIT_EXCEEDED`, with `retry_after_ms`, if others are under way
    and no turn comes within a quarter of the time, 401, 403.
    """

    PATH = "/v2/federation/destinations/<destination>/diagnose"

    async def on_POST(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        await services.homeserver.require_admin(request)
        require_known(request, ())
        Body.parse(request, ())
        if not destination:
            raise unknown_destination()
        try:
            found = await services.diagnoses.diagnose(destination)
        except TooManyDiagnosesError:
            raise LimitExceededError(
                "federation_admin_diagnosis",
                retry_after_ms=services.diagnoses.timeout_ms,
            ) from None
        return HTTPStatus.OK, render(found)


def render(diagnosis: Diagnosis) -> JsonDict:
    """Render a diagnosis."""
    conclusion = diagnosis.conclusion
    return {
        "destination": diagnosis.destination,
        "checked_ts": diagnosis.checked_ts,
        "duration_ms": diagnosis.duration_ms,
        "instance": diagnosis.instance,
        "verdict": conclusion.verdict.value,
        "kind": _plain(conclusion.kind),
        "explanation": conclusion.explanation,
        "advice": conclusion.advice,
        "stages": [_render_stage(stage) for stage in diagnosis.stages],
        "stored": _findings(diagnosis.stage(StageName.STORED)),
    }


def _render_stage(stage: Stage) -> JsonDict:
    return {
        "name": stage.name.value,
        "outcome": stage.outcome.value,
        "kind": _plain(stage.kind),
        "message": stage.message,
        "duration_ms": stage.duration_ms,
        "findings": _findings(stage),
    }


def _findings(stage: Stage) -> JsonDict | None:
    """Return what a stage has found, as objects and lists."""
    findings = stage.findings
    if findings is None:
        return None
    shown = attr.asdict(findings, value_serializer=_serialize)
    if isinstance(findings, StoredFindings):
        shown["backlog"] = render_backlog(findings.backlog)
        failure = findings.last_failure
        shown["last_failure"] = render_last_failure([failure] if failure else [])
    return shown


def _serialize(_inst: object, _field: object, value: object) -> object:
    return _plain(value) if isinstance(value, Enum) else value


def _plain(value: Enum | None) -> Any:
    return None if value is None else value.value
