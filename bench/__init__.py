# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what an attach costs and what the wire carries, beside the classic way.

`python -m bench attach`, `… wire`, `… all`; docs/benchmarks.md says what
each row is and where its clock starts and stops.
"""
