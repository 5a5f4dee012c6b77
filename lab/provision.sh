#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Make this machine a node: lab/provision.sh VTEP-ADDRESS [CHECKOUT]
#
# Installs what the checkout needs, puts the command on the PATH and writes a
# configuration whose uplink is the interface that has the address. Starts
# nothing, and may be run again.
set -euo pipefail

if [[ $# -lt 1 || $EUID -ne 0 ]]; then
    printf 'usage, as root: lab/provision.sh VTEP-ADDRESS [CHECKOUT]\n' >&2
    exit 2
fi
vtep=$1 checkout=${2:-/vagrant}
config=/etc/geneve-ebpf/agent.toml

"$checkout/script/bootstrap"
ln -sfn "$checkout/.venv/bin/geneve-ebpf" /usr/local/bin/geneve-ebpf

uplink=$(ip -oneline -4 address show to "$vtep" | awk 'NR == 1 { print $2 }')
if [[ -z $uplink ]]; then
    printf 'provision: no interface has the address %s\n' "$vtep" >&2
    exit 1
fi

install -d -m 755 "${config%/*}"
cat >"$config" <<TOML
# Written by lab/provision.sh.
[node]
vtep = "$vtep"
uplinks = ["$uplink"]
TOML

printf 'provision: ready, with VTEP %s on %s. Start the agent with\n' "$vtep" "$uplink"
printf '  sudo geneve-ebpf agent run --config %s\n' "$config"
