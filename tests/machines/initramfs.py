# SPDX-License-Identifier: Apache-2.0
"""The file system of a small virtual machine: busybox, the modules of a virtio NIC, two scripts.

Its first process reads commands from the serial line and says after each how it ended.
"""

from __future__ import annotations

from pathlib import Path

MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
)
READY = "machine: ready"

INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in {" ".join(one.rpartition("/")[2] for one in MODULES)}; do insmod /$module.ko; done
ip link set lo up
ip link set eth0 up
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
echo "{READY}"
while read -r line; do eval "$line"; done
poweroff -f
"""

# What DHCP has told: as the scripts of distributions do it, a gateway that a /32 does
# not cover is on the link.
CONFIGURE = """#!/bin/sh
case $1 in
    deconfig) ip -4 addr flush dev "$interface" ;;
    bound | renew)
        ip addr replace "$ip/$mask" dev "$interface"
        ip link set "$interface" mtu "$mtu"
        ip route replace "$router" dev "$interface"
        ip route replace default via "$router" dev "$interface" ;;
esac
"""


def build(kernel: Path) -> bytes:
    """A cpio archive as kernels read it. kernel: what `script/bootstrap kernel` made."""
    (tree,) = (kernel / "lib/modules").iterdir()
    files = {
        "bin": None,
        "bin/busybox": (kernel / "busybox").read_bytes(),
        "init": INIT.encode(),
        "configure": CONFIGURE.encode(),
    }
    for module in MODULES:
        name = module.rpartition("/")[2]
        files[f"{name}.ko"] = (tree / f"kernel/{module}.ko").read_bytes()
    entries = [_entry(name, data, number) for number, (name, data) in enumerate(files.items(), 1)]
    return b"".join((*entries, _entry("TRAILER!!!", b"", 0)))


def _entry(name: str, data: bytes | None, number: int) -> bytes:
    """One file, or a directory (None), in the format "newc"."""
    mode = 0o040755 if data is None else 0o100755
    data = data or b""
    numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % one for one in numbers) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
