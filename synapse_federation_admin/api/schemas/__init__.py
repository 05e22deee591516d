# SPDX-License-Identifier: Apache-2.0
"""What the API takes in and gives out, each described once.

Requests are parsed into these models, answers are rendered from them, and the OpenAPI
document and the tables in docs/api.md are made from them. They need pydantic 2: nothing
of v1 imports them while Synapse starts.
"""
