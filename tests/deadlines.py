# SPDX-License-Identifier: Apache-2.0
"""How long tests wait."""

# Within this what is waited for is there, on a busy machine, too. What waits for a
# backoff, for Synapse's catch-up or for a timeout takes a minute or more.
SOON_S = 120

# Less than Synapse alone would take. How quick it is on a quiet machine the benchmarks
# tell.
AT_ONCE_S = 30
