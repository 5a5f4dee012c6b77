# SPDX-License-Identifier: Apache-2.0
"""An eBPF data plane that puts sandboxes into tenants' VPCs over Geneve (RFC 8926)."""

__version__ = "0.1.0"
