#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What runs first in the virtual machine, as root: makes the machine's file system a
# writable copy of the host's, then runs the tests. Called by boot.py:
#
#   guest.sh DIRECTORY-OF-THE-KERNEL CHECKOUT PYTEST-ARGUMENT...
#
# The root is mounted without any cache, so that each start of a program reads it all
# again. It is mounted once more with one (tag "root"), below an overlay in memory.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() {
    local seconds
    read -r seconds _ </proc/uptime
    printf 'vm: %6.1f s  %s\n' "$seconds" "$*"
}

kernel=$1 checkout=$2
shift 2
modules=lib/modules/$(uname -r)
status=70

finish() {
    printf '%s\n' "$status" >/run/report/status
    sync
    say "ends, status $status"
    echo "vm: over"
}

mkdir /run/report
mount -t 9p -o trans=virtio,version=9p2000.L report /run/report
trap finish EXIT
say "Linux $(uname -r) is up"

mkdir /run/host /run/memory
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /run/host
mount -t tmpfs -o mode=755 memory /run/memory
mkdir /run/memory/{changes,work,root}
insmod "$kernel/$modules/kernel/fs/overlayfs/overlay.ko"
root=/run/memory/root
mount -t overlay -o lowerdir=/run/host,upperdir=/run/memory/changes,workdir=/run/memory/work \
    root "$root"
for place in proc sys dev; do mount --rbind "/$place" "$root/$place"; done
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root/run/before" "$root/run/report" "$root/$modules"
mount --move /run/report "$root/run/report"
# What lies below /tmp is needed all the same if the checkout does.
for place in "$kernel" "$checkout"; do
    [[ $place != /tmp/* && $place != /run/* ]] || {
        mkdir -p "$root$place"
        mount --bind "/run/host$place" "$root$place"
    }
done
mount --bind "/run/host$kernel/$modules" "$root/$modules"
cd "$root"
pivot_root . run/before
cd "$checkout"
ip link set lo up

# Those that a test may only look for, so that it finds them, or whose device has a door.
modprobe --all geneve openvswitch tun || { say "a module is missing"; exit; }
say "its root is the host's, with changes kept in memory"

status=0
.venv/bin/python -m pytest "$@" 2>&1 | cat || status=${PIPESTATUS[0]}

# The kernel's own opinion. Words that it uses for nothing else.
if dmesg | grep -E -A 25 'BUG:|WARNING:|Oops|general protection|Call Trace|soft lockup|hung_task'; then
    say "the kernel complained, as above"
    [[ $status -ne 0 ]] || status=71
fi
