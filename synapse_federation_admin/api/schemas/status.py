# SPDX-License-Identifier: Apache-2.0
"""v2: what of this module works here."""

from pydantic import Field

from synapse_federation_admin.api.schemas.model import Answer


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
