# SPDX-License-Identifier: Apache-2.0
"""How long tests wait."""

# Within this what is done at once is done, on a busy machine, too. What waits for a
# backoff, for Synapse's catch-up or for a timeout takes a minute or more. How quick it
# is on a quiet machine the benchmarks tell.
SOON_S = 60
