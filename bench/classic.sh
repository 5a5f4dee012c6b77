#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The classic way to put a sandbox into its tenant's network, as an operator
# would write it: a namespace, a veth, a tunnel device with the tenant's VNI, a
# bridge, addresses and six rules. bench/classic.py times it from start to end.
#
# usage: classic.sh NUMBER NAMESPACE VNI NETWORK KIND LOCAL REMOTE MTU GROUP
#   NETWORK   the first three bytes of a /24, such as 10.0.7
#   KIND      vxlan or geneve
#   GROUP     of all links made here, so that they can be deleted at once
set -e
number=$1 namespace=$2 vni=$3 network=$4 kind=$5 local=$6 remote=$7 mtu=$8 group=$9
bridge=gnvb$number tunnel=gnvt$number veth=gnvh$number
case $kind in
    vxlan) tunnel_options="id $vni local $local remote $remote dstport 4789" ;;
    geneve) tunnel_options="id $vni remote $remote" ;;
esac

ip netns add "$namespace"
ip link add "$bridge" group "$group" type bridge
# shellcheck disable=SC2086 # several words on purpose
ip link add "$tunnel" group "$group" mtu "$mtu" type "$kind" $tunnel_options
ip link add "$veth" group "$group" mtu "$mtu" type veth \
    peer name eth0 mtu "$mtu" netns "$namespace"
ip link set "$tunnel" master "$bridge" up
ip link set "$veth" master "$bridge" up
ip address add "$network.1/24" dev "$bridge"
ip link set "$bridge" up
ip -n "$namespace" address add "$network.2/24" dev eth0
ip -n "$namespace" link set eth0 up
ip -n "$namespace" route add default via "$network.1"

# Only its own source address; not the metadata address, not the host; out
# through the underlay with the host's address, and answers back in.
iptables -t raw -A PREROUTING -m physdev --physdev-in "$veth" ! -s "$network.2" -j DROP
iptables -A FORWARD -i "$bridge" -d 169.254.169.254 -j DROP
iptables -A INPUT -i "$bridge" -p tcp -j DROP
iptables -A FORWARD -i "$bridge" -o underlay -j ACCEPT
iptables -A FORWARD -o "$bridge" -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables -t nat -A POSTROUTING -s "$network.0/24" -o underlay -j MASQUERADE
