# SPDX-License-Identifier: Apache-2.0
"""What all models share.

In every model a field with the default None is a key that may be absent, and is never
null; a key that may be null is one without a default, `int | None`, or, if it may be
absent, too, with `default_factory=absent`.
"""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    Strict,
    WithJsonSchema,
    field_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType

from synapse_federation_admin.durations import DURATION, parse_duration
from synapse_federation_admin.failures.kinds import FAILURE_KINDS, FailureKind

_UNITS = {"_ts": "In ms since the epoch.", "_ms": "In ms.", "_s": "In seconds."}


class Model(BaseModel):
    """An object of JSON: strict types, no key beside those described."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        # None is built before it is used: Synapse starts no later for them.
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON Schema: null only where it may be, and units in words."""
        schema = handler(core_schema)
        found = handler.resolve_ref_schema(schema)
        for name, field in found.get("properties", {}).items():
            field.pop("title", None)
            if "default" in field and field["default"] is None:
                del field["default"]
                (present,) = (
                    kind for kind in field.pop("anyOf") if kind != {"type": "null"}
                )
                field.update({**present, **field})
            for end, unit in _UNITS.items():
                if name.endswith(end) and "description" in field:
                    field["description"] += f" {unit}"
        return schema


class Input(Model):
    """What a request brings: query parameters, or a JSON body."""

    # With a bound, pydantic also refuses half of a surrogate pair, which no database
    # and no answer takes.
    model_config = ConfigDict(str_max_length=65_536)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_null(cls, value: object) -> object:
        """Refuse null, which is not the same as a key that is absent."""
        if value is None:
            raise ValueError("must not be null")
        return value


class Nothing(Input):
    """No parameter, and no key."""


# What pydantic imports for its first schema is imported now: when a request comes there
# may be no descriptor left.
Nothing.model_json_schema()


class Answer(Model):
    """What a request is answered with: described here, and made without it."""


class Error(Answer):
    """A Matrix error."""

    model_config = ConfigDict(extra="allow")

    errcode: str = Field(description="What is wrong, for programs.")
    error: str = Field(description="What is wrong, for people.")


def absent() -> Any:
    """Return what stands for a key that is absent, where null is a value."""
    return ...


def _parse_duration(value: object) -> int:
    found = parse_duration(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            "must be a duration: a number and one of s, m, h, d and w, such as 7d"
        )
    return found


# A text of which the databases take every character.
Text: TypeAlias = Annotated[str, Field(pattern=r"^[^\x00]*$")]

Reason: TypeAlias = Annotated[
    Text, Field(description="Why, for the audit.", max_length=1000)
]

# Within the 64 bits of both databases.
Time: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]

# A duration such as `7d`; its value is in ms.
Duration: TypeAlias = Annotated[
    int,
    BeforeValidator(_parse_duration),
    WithJsonSchema(
        {"type": "string", "pattern": f"^{DURATION.pattern}$", "examples": ["7d"]}
    ),
]

# After an Enum that a request gives: it comes as one of the values, not as a member.
Lax = Strict(False)


class Paged(Input):
    """Which page of a list."""

    limit: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=100, description="The most rows to return."
    )
    from_: str | None = Field(
        default=None, alias="from", description="The `next_token` of the page before."
    )


NextToken: TypeAlias = Annotated[
    str | None,
    Field(description="The next page's `from`; absent on the last page."),
]

# What is stored may come from a later release: a word that is not known here is shown
# as it is.
Kind = TypeAliasType(
    "Kind",
    Annotated[
        str,
        Field(
            description="Why a request to another server fails.",
            examples=[kind.value for kind in FailureKind],
        ),
    ],
)

# One of the kinds, or `unknown`: what can be asked for.
WantedKind: TypeAlias = Literal[FAILURE_KINDS]  # type: ignore[valid-type]
