# SPDX-License-Identifier: Apache-2.0
"""How much one transaction does, so that it holds nobody up."""

# How many rows next to each other by name one transaction looks at: some 10 ms.
WINDOW = 4000

# How many rows next to each other in the table, which SQLite reads far faster: at
# first, and within which bounds that is adapted if a transaction was shorter or longer
# than this.
TABLE_PIECE = 20_000
MIN_TABLE_PIECE = 1000
MAX_TABLE_PIECE = 200_000
SHORT_S = 0.006
LONG_S = 0.015

# Of how many rows the values tell how they are distributed.
SAMPLE = 5000

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
