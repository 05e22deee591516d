# SPDX-License-Identifier: Apache-2.0
"""Values of the rooms below, as the API shows them.

Each class is described where it is defined: by its docstring and those of its
properties. From there come its model, for the document, and what is shown of it.
"""

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from inspect import getdoc
from operator import attrgetter
from typing import (
    Annotated,
    Any,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import attr
from pydantic import Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema

from synapse_federation_admin.api.schemas.model import Answer, Kind, Model
from synapse_federation_admin.destinations.senders import Sender
from synapse_federation_admin.diagnosis.findings import SenderFindings
from synapse_federation_admin.diagnosis.stages import Diagnosis, Stage
from synapse_federation_admin.failures import kinds
from synapse_federation_admin.failures.kinds import FailureKind, Reason
from synapse_federation_admin.failures.text import detail_of, message_of
from synapse_federation_admin.history.outlook import Correlation
from synapse_federation_admin.history.store import AvailableDay
from synapse_federation_admin.storage.instances import Instance
from synapse_federation_admin.storage.recent_attempts import RecentAttempts, SharedCause
from synapse_federation_admin.storage.records import RecordedFailure
from synapse_federation_admin.storage.values import AuditEntry, Contact, Run

T = TypeVar("T")

# The keys of those that are not shown field by field. Each is a field or a property;
# `key=path` where the key has another name.
_KEYS: Mapping[type[Any], str] = {
    AuditEntry: "entry_id ts ended_ts action destination user_id=actor.user_id "
    "puppeted_by=actor.puppeted_by instance reason outcome run_id details",
    AvailableDay: "date share",
    Contact: "duration_ms server error=failure",
    Correlation: "verdict explanation can_be_told last_hour last_15_minutes=lately",
    Diagnosis: "destination checked_ts duration_ms instance verdict=situation.verdict "
    "kind=situation.kind reason=situation.reason fault=situation.fault "
    "explanation=situation.explanation advice=situation.advice stages stored",
    Instance: "instance=name state seen_ts started_ts module_version synapse_version "
    "sends in_memory reactor_late_ms",
    RecentAttempts: "tried=total failing unanswered began share shared=causes",
    RecordedFailure: "kind message first_ts last_ts count instance",
    Run: "id=run_id action status user_id=actor.user_id puppeted_by=actor.puppeted_by "
    "reason criteria options created_ts started_ts updated_ts ended_ts matched done "
    "outcomes totals errors error rate_per_second",
    Sender: "instance state seen_ts position behind_events behind_ms ahead_events",
    SenderFindings: "instance=sender.instance state=sender.state "
    "seen_ts=sender.seen_ts position=sender.position "
    "behind_events=sender.behind_events behind_ms=sender.behind_ms "
    "ahead_events=sender.ahead_events queued_position",
    Stage: "name outcome kind reason message duration_ms findings",
    SharedCause: "type value destinations began",
}


_PLAIN = frozenset({str, int, float, bool, type(None)})


class Failure(Answer):
    """Why a request to another server failed."""

    kind: Kind = Field(description="The cause.")
    reason: str | None = Field(
        description="What exactly, below the kind; null where that cannot be told.",
        examples=[reason.value for reason in Reason],
    )
    message: str = Field(description="The same for people.")
    detail: str = Field(
        description="What is particular, in the words of the other server, of OpenSSL "
        "and of the network; empty if there is nothing."
    )


def shown(value: Any) -> Any:
    """Return a value as JSON has it; `model_of` describes it."""
    kind: Any = type(value)
    # Most are such.
    if kind in _PLAIN:
        return value
    if _has_keys(kind) and kind is not kinds.Failure:
        return {
            key: found if type(found := get(value)) in _PLAIN else shown(found)
            for key, (_, get) in keys_of(kind).items()
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [shown(each) for each in value]
    if isinstance(value, Mapping):
        return {shown(key): shown(each) for key, each in value.items()}
    if isinstance(value, kinds.Failure):
        return {
            "kind": value.kind.value,
            "reason": shown(value.reason),
            "message": message_of(value),
            "detail": detail_of(value),
        }
    return value


@cache
def _has_keys(kind: Any) -> bool:
    """Tell whether a type is a class of values: of attrs, or a named tuple."""
    return attr.has(kind) or hasattr(kind, "_fields")


@cache
def model_of(value: Any) -> type[Model]:
    """Return the model of a class of values; that of a model is itself."""
    if value is kinds.Failure:
        return Failure
    if issubclass(value, Model):
        model: type[Model] = value
        return model
    fields: dict[str, Any] = {
        key: _described(value, path) for key, (path, _) in keys_of(value).items()
    }
    text = (getdoc(value) or "").partition("\n")[0]
    return create_model(value.__name__, __base__=Answer, __doc__=text, **fields)


class _Lazily:
    """Makes the model of a class of values once its schema is asked for.

    Synapse starts sooner for it.
    """

    @staticmethod
    def __get_pydantic_core_schema__(
        source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return handler.generate_schema(model_of(source))


# In a model: a value of a class of values, as JSON has it.
Shown: TypeAlias = Annotated[T, _Lazily]


@cache
def keys_of(value: Any) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Return the keys of a value as JSON has it: each path, and what gets it."""
    keys = _KEYS.get(value) or " ".join(
        getattr(value, "_fields", None) or attr.fields_dict(value)
    )
    named = (key.partition("=") for key in keys.split())
    return {key: (path or key, attrgetter(path or key)) for key, _, path in named}


def _described(value: Any, path: str) -> tuple[Any, Any]:
    """Return a key's type, and its description."""
    name, _, rest = path.partition(".")
    hints = _hints(value)
    if rest:
        return _described(hints[name], rest)
    found = getattr(value, name, None)
    if isinstance(found, property):
        kind = _hints(found.fget)["return"]
        text = (getdoc(found) or "").partition("\n")[0]
    else:
        kind, text = hints[name], _attributes(value)[name]
    # The docstrings are about values of Python's.
    text = re.sub(r"\bNone\b", "null", " ".join(text.split()))
    return type_of(kind), Field(description=text)


@cache
def _hints(value: Any) -> dict[str, Any]:
    return get_type_hints(value, include_extras=True)


def _attributes(value: type[Any]) -> dict[str, str]:
    """Return what a class' docstring says of each attribute."""
    section = (getdoc(value) or "").partition("Attributes:")[2]
    return dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.M))


def type_of(kind: Any) -> Any:
    """Return the type with which a value of a type is shown."""
    arguments, origin = get_args(kind), get_origin(kind)
    if kind is object:
        return Any
    if kind is FailureKind:
        return Kind
    if origin is Annotated:
        # A text that is one of an Enum's values, or what a later release has written.
        if arguments[1] is FailureKind:
            return Kind
        examples = [word.value for word in arguments[1]]
        return Annotated[str, Field(examples=examples)]
    if origin is tuple:
        return list[type_of(arguments[0])]  # type: ignore[misc]
    if origin is Mapping:
        return dict[arguments[0], type_of(arguments[1])]  # type: ignore[misc, valid-type]
    if arguments:
        return Union[tuple(type_of(each) for each in arguments)]  # noqa: UP007
    return Shown[kind] if _has_keys(kind) else kind  # type: ignore[misc]
