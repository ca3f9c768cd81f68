#!/usr/bin/env bash
# The impairment relay: loss, delay and a black hole on one node's link, and their end.
#
#   my-web.1 ── n1 ══[relay]══ underlay ══ n2 ── my-web.2
. "$(dirname "$0")/lib.sh"

up --nodes 2
check "ping before" in_lab my-web.1 ping -c 1 -W 2 10.0.1.2
pp "$weft" lab impair "$lab" n1 --delay 20ms
check "a round trip takes over 20 ms" sh -c "'$weft' lab exec $lab my-web.1 -- ping -c 3 -i 0.2 -W 2 -q 10.0.1.2 | awk -F/ '/^rtt/ { exit !(\$5 > 20) }'"
pp "$weft" lab impair "$lab" n1 --loss 100%
check "nothing passes at 100 % loss" sh -c "! '$weft' lab exec $lab my-web.1 -- ping -c 2 -i 0.2 -W 1 10.0.1.2"
pp "$weft" lab impair "$lab" n1 --clear
wait_until 3 "traffic is back when the relay is clear" "$weft" lab exec "$lab" my-web.1 -- ping -c 1 -W 1 10.0.1.2
finish
