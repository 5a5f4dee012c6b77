# SPDX-License-Identifier: Apache-2.0
"""A simulator of storms: what queues do that no machine at hand is large enough to show.

It knows nothing of packets or maps, only of who holds which lock and CPU for how
long; those times are what a bench run measured.
"""
