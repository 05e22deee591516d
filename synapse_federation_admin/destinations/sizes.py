# SPDX-License-Identifier: Apache-2.0
"""How much one transaction does, so that it holds nobody up."""

# How many rows one transaction looks at on SQLite, some 10 ms: of those next to each
# other by name, and of those next to each other in the table, which it reads far
# faster.
WINDOW = 4000
TABLE_PIECE = 100_000

# A page looks through so many windows before it takes one pass over the table instead.
MAX_WINDOWS = 3
FIRST_WINDOW = 1000

# How many rows a long list takes at a time: where an index leads the database to them,
# and where each time costs a pass.
LONG_PIECE = 4000
PASS_PIECE = 20_000

# How many index entries one transaction skips on SQLite.
HOP = 200_000

# How many of the requests that cost a pass over the table may use the database at once.
MAX_PASSES = 2
