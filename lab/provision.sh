#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Make this machine, any fresh Debian 12, one of the lab:
#
#   lab/provision.sh VTEP-ADDRESS [CHECKOUT]   a worker: a node whose uplink is the
#                                              interface that has the address
#   lab/provision.sh --client                  the machine outside: no node, only tools
#
# Installs what is needed, puts the command on the PATH, writes a configuration and
# the service's unit. Starts and enables nothing, and may be run again.
set -euo pipefail

if [[ $# -lt 1 || $EUID -ne 0 ]]; then
    printf 'usage, as root: lab/provision.sh VTEP-ADDRESS [CHECKOUT] | --client\n' >&2
    exit 2
fi
vtep=$1 checkout=${2:-/vagrant}
config=/etc/geneve-ebpf/agent.toml
export DEBIAN_FRONTEND=noninteractive

missing=
for tool in iperf3 ping python3; do command -v "$tool" >/dev/null || missing=yes; done
if [[ -n $missing ]]; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends iperf3 iputils-ping python3 >/dev/null
fi
[[ $vtep != --client ]] || exit 0

"$checkout/script/bootstrap"
ln -sfn "$checkout/.venv/bin/geneve-ebpf" /usr/local/bin/geneve-ebpf

uplink=$(ip -oneline address show to "$vtep" | awk 'NR == 1 { print $2 }')
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
geneve-ebpf config check "$config"
install -m 644 "$checkout/deploy/geneve-ebpf.service" /etc/systemd/system/
systemctl daemon-reload

printf 'provision: ready, with VTEP %s on %s. Start the agent with\n' "$vtep" "$uplink"
printf '  sudo systemctl start geneve-ebpf\n'
