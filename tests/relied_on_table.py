# SPDX-License-Identifier: Apache-2.0
"""Writes the table in docs/architecture.md of what is relied on: `python FILE`.

What is relied on is the code's; why it is stays as the table has it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from hidden_name import relied_on_names

from synapse_federation_admin.homeserver import relied_on

FILE = Path(__file__).parent.parent / "docs/architecture.md"
ROW = re.compile(r"^\| (.+?) \| (`.+) \| (.*?) \| (.+?) \|$", re.MULTILINE)
_TABLE = re.compile(r"(?<=<!-- relied on -->\n).*?(?=<!-- end -->)", re.DOTALL)


def parts() -> Iterator[tuple[str, str, str]]:
    """Yield each row's part of Synapse, its names, and what is off without them."""
    found: dict[tuple[str, str], tuple[list[str], set[str]]] = {}
    for features, root, path in relied_on_names():
        off = {feature.value for feature in features}
        # The homeserver object has parts of very different use.
        key = (root, " ".join(sorted(off)) if root == "hs" else "")
        names, all_off = found.setdefault(key, ([], set()))
        names.append(path)
        all_off |= off
    for logger, _ in sorted(set(relied_on.LOG_TEXTS.values())):
        names, all_off = found.setdefault((f"log of {logger}", ""), ([], set()))
        names += (t for t, (of, _) in relied_on.LOG_TEXTS.items() if of == logger)
        all_off |= {feature.value for feature in relied_on.LOG_TEXTS_ARE_FOR}
    for features, table, columns in relied_on.COLUMNS:
        names, all_off = found.setdefault((f"table {table}", ""), ([], set()))
        names += (column for column in columns.split() if column not in names)
        all_off |= {feature.value for feature in features}
    for (root, _), (names, off) in sorted(found.items()):
        kind, _, name = root.rpartition(" ")
        shown = f"{kind} `{name}`".strip()
        # As in the code, so that the name is on the page to search for.
        yield shown, ", ".join(f"`{n}`" for n in names), ", ".join(sorted(off)) or "-"


def written(text: str) -> str:
    """Return a document with the table as it has to be."""
    rows = [m.groups() for m in map(ROW.match, text.splitlines()) if m]
    why = {(part, off): reason for part, _, reason, off in rows}
    # Where what is off has changed, why it is needed has not.
    any_why = {part: reason for part, _, reason, _ in rows}
    table = "| part | what of it | why | off without it |\n|---|---|---|---|\n"
    for part, names, off in parts():
        reason = why.get((part, off)) or any_why.get(part, "")
        table += f"| {part} | {names} | {reason} | {off} |\n"
    return _TABLE.sub(lambda _: table, text)


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
