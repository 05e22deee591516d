# SPDX-License-Identifier: Apache-2.0
"""The tables of this module's own, in Synapse's database.

In the order in which to read:

    sql, definitions, schema: statements; which tables there are; how they are made
    values: what they keep
    audit, runs, run_queue: what admins did, and what is being done to many destinations
    records, outages, outage_ends: what real requests met; when destinations failed, and
        what has ended that
    recent_attempts: what those have in common that were tried lately
    instances: which processes run
"""
