# SPDX-License-Identifier: Apache-2.0
"""SQL that is not the same on both databases."""

from collections.abc import Mapping


def rows_of_json(name: str, columns: Mapping[str, str], is_postgres: bool) -> str:
    """Return what stands in a FROM for rows that come as one parameter.

    Args:
        name: The name of these rows there.
        columns: By name, the types of their columns.
        is_postgres: Whether it is for PostgreSQL.

    Returns:
        The text, with one parameter: a list of objects, as JSON.
    """
    if is_postgres:
        typed = ", ".join(f"{column} {type_}" for column, type_ in columns.items())
        return f"json_to_recordset(CAST(? AS json)) AS {name} ({typed})"
    picked = ", ".join(
        f"json_extract(value, '$.{column}') AS {column}" for column in columns
    )
    return f"(SELECT {picked} FROM json_each(?)) AS {name}"  # noqa: S608
