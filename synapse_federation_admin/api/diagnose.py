# SPDX-License-Identifier: Apache-2.0
"""v2: why federation with a server fails, and what to do."""

from enum import Enum
from http import HTTPStatus
from typing import Any

import attr
from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin.api._base import AdminServlet, unknown_destination
from synapse_federation_admin.api._operation import Operation
from synapse_federation_admin.api.schemas.destinations import Backlog, RecordedFailure
from synapse_federation_admin.api.schemas.diagnosis import Diagnosis
from synapse_federation_admin.api.schemas.model import Nothing
from synapse_federation_admin.diagnosis import findings
from synapse_federation_admin.diagnosis.diagnose import TooManyDiagnosesError
from synapse_federation_admin.diagnosis.findings import (
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

    It takes at most as long as `diagnosis.timeout` says. Who asks while the server is
    being diagnosed gets the same diagnosis.
    """

    PATH = "/v2/federation/destinations/<destination>/diagnose"
    POST = Operation(
        Nothing,
        Diagnosis,
        errors={
            404: "The name is empty.",
            429: "Other diagnoses are under way, and no turn came within a quarter of "
            "the time; `retry_after_ms` says when to ask again.",
        },
    )

    async def on_POST(
        self, request: SynapseRequest, destination: str
    ) -> tuple[int, JsonDict]:
        """Answer POST."""
        services = self._services
        await services.homeserver.require_admin(request)
        self.POST.parse(request)
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


def render(diagnosis: findings.Diagnosis) -> JsonDict:
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
    found = stage.findings
    if found is None:
        return None
    shown = attr.asdict(found, value_serializer=_serialize)
    if isinstance(found, StoredFindings):
        shown["backlog"] = Backlog.of(found.backlog).rendered()
        failure = found.last_failure
        shown["last_failure"] = (
            RecordedFailure.of(failure).rendered() if failure else None
        )
    return shown


def _serialize(_inst: object, _field: object, value: object) -> object:
    return _plain(value) if isinstance(value, Enum) else value


def _plain(value: Enum | None) -> Any:
    return None if value is None else value.value
