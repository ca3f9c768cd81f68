#!/usr/bin/env bash
# A weft node and a node with the kernel's own VXLAN device on one network: interoperability both ways.
#
#   my-web.1 10.0.1.1 ── n1 (weft) ══ underlay ══ k1 (kernel vxlan) ── my-web.2 10.0.1.2
. "$(dirname "$0")/lib.sh"

up --nodes 1 --kernel-peers 1
check "ping weft -> kernel" in_lab my-web.1 ping -c 2 -i 0.2 -W 2 10.0.1.2
check "ping kernel -> weft" in_lab my-web.2 ping -c 2 -i 0.2 -W 2 10.0.1.1
check "large pings, fragmented inside" in_lab my-web.1 ping -c 2 -i 0.2 -W 2 -s 4000 10.0.1.2
tcp my-web.1 my-web.2 10.0.1.2
tcp my-web.2 my-web.1 10.0.1.1
finish
