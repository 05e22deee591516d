# SPDX-License-Identifier: Apache-2.0
"""v2: why federation with a server fails."""

import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from inspect import getdoc
from typing import Any, Union, get_args, get_origin, get_type_hints

import attr
from pydantic import Field, create_model

from synapse_federation_admin.api.schemas.destinations import Backlog, RecordedFailure
from synapse_federation_admin.api.schemas.failure import Failure
from synapse_federation_admin.api.schemas.model import Answer, Kind
from synapse_federation_admin.destinations.backlog import Backlog as BacklogValue
from synapse_federation_admin.diagnosis import findings as values
from synapse_federation_admin.diagnosis.findings import (
    StageName,
    StageOutcome,
)
from synapse_federation_admin.failures import kinds
from synapse_federation_admin.failures.kinds import Fault, Reason
from synapse_federation_admin.failures.text import Verdict
from synapse_federation_admin.storage.failures import (
    RecordedFailure as RecordedFailureValue,
)

# Values that are shown otherwise than they are.
_SHOWN: Mapping[type[Any], type[Any]] = {
    BacklogValue: Backlog,
    RecordedFailureValue: RecordedFailure,
    kinds.Failure: Failure,
}


def shown(value: Any) -> Any:
    """Return what a diagnosis has found as JSON has it; `model_of` describes it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [shown(each) for each in value]
    kind = type(value)
    if kind in _SHOWN:
        return _SHOWN[kind].of(value).rendered()
    if attr.has(kind):
        return {name: shown(getattr(value, name)) for name in attr.fields_dict(kind)}
    return value


@cache
def model_of(value: type[Any]) -> type[Answer]:
    """Return the model of a class of values that are shown as they are.

    What a diagnosis finds is some twenty of them: their fields are described where they
    are defined, in the docstrings.
    """
    if value in _SHOWN:
        return _SHOWN[value]
    text = getdoc(value) or ""
    described = {
        match[1]: " ".join(match[2].split())
        for match in re.finditer(
            r"^    (\w+): (.*(?:\n {8}.*)*)", text.partition("Attributes:")[2], re.M
        )
    }
    hints = get_type_hints(value)
    fields: dict[str, Any] = {
        field.name: (
            _type_of(hints[field.name]),
            Field(description=described[field.name]),
        )
        for field in attr.fields(value)
    }
    return create_model(
        value.__name__, __base__=Answer, __doc__=text.partition("\n")[0], **fields
    )


def _type_of(kind: Any) -> Any:
    """Return the type with which a value of a type is shown."""
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return list[_type_of(arguments[0])]  # type: ignore[misc]
    if arguments:
        return Union[tuple(_type_of(each) for each in arguments)]  # noqa: UP007
    return model_of(kind) if attr.has(kind) else kind


class Stage(Answer):
    """What came of one stage of a diagnosis."""

    name: StageName = Field(description="Which stage; they come in this order.")
    outcome: StageOutcome = Field(
        description="`ok`; `warning`: something is wrong, but does not always stop "
        "requests; `failed`: no request gets past here; `skipped`: not tried."
    )
    kind: Kind | None = Field(description="What is wrong; null if nothing is.")
    reason: Reason | None = Field(
        description="What exactly, below the kind; null where that cannot be told."
    )
    message: str = Field(description="The same for people.")
    duration_ms: int = Field(description="How long it took.")
    findings: _type_of(values.Findings) | None = Field(  # type: ignore[valid-type]
        description="What was seen; null if it was not tried."
    )


class Diagnosis(Answer):
    """A diagnosis of the way to one server."""

    destination: str = Field(description="The server name.")
    checked_ts: int = Field(description="When it was begun.")
    duration_ms: int = Field(description="How long it took.")
    instance: str = Field(description="The process; the main process is `main`.")
    verdict: Verdict = Field(
        description="`ok`; `degraded`: it works, but not always, or something is not "
        "as it should be; `failing`; `unknown`: this module itself has failed."
    )
    kind: Kind | None = Field(description="The cause; null if nothing is wrong.")
    reason: Reason | None = Field(
        description="What exactly, below the kind; null where that cannot be told."
    )
    fault: Fault | None = Field(
        description="Whose fault it is; `unknown` if it may be either's; null if "
        "nothing is wrong."
    )
    explanation: str = Field(description="What is wrong, for people.")
    advice: str = Field(description="What to do next, for people.")
    stages: list[Stage] = Field(
        description="Every stage, always the same ones, in order."
    )
    stored: model_of(values.StoredFindings) | None = Field(  # type: ignore[valid-type]
        description="The findings of the stage `stored`."
    )
