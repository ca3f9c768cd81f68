#!/usr/bin/env bash
# An agent killed without warning: workloads keep their interfaces, and a restart brings traffic back
# within a second, with nothing doubled.
#
#   my-web.1 ── n1 (killed, restarted) ══ underlay ══ n2 ── my-web.2
. "$(dirname "$0")/lib.sh"

links() { ip netns list | grep -c "$lab" || true; }

up --nodes 2
check "ping before" in_lab my-web.1 ping -c 1 -W 2 10.0.1.2
before=$(links)
for round in 1 2 3 4 5; do
    pp "$weft" lab kill "$lab" n1
    check "round $round: the workload keeps its interface" in_lab my-web.1 ip link show dev eth0 up
    pp "$weft" lab start "$lab" n1
    wait_until 1 "round $round: traffic is back" "$weft" lab exec "$lab" my-web.1 -- ping -c 1 -W 1 10.0.1.2
done
check "as many namespaces as before" test "$(links)" = "$before"
tcp my-web.1 my-web.2 10.0.1.2
finish
