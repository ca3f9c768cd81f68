#!/usr/bin/env bash
# Two nodes, one network, one workload each: names, addresses, traffic, tables, removal.
#
#   my-web.1 10.0.1.1 ── n1 ══ underlay ══ n2 ── my-web.2 10.0.1.2
. "$(dirname "$0")/lib.sh"

up --nodes 2
check "ping n1 -> n2" in_lab my-web.1 ping -c 2 -i 0.2 -W 2 10.0.1.2
check "ping n2 -> n1" in_lab my-web.2 ping -c 2 -i 0.2 -W 2 10.0.1.1
check "ping of the full MTU, not to be fragmented" in_lab my-web.1 ping -c 1 -W 2 -M do -s 1422 10.0.1.2
check "the gateway answers on the spot" in_lab my-web.1 ping -c 1 -W 2 10.0.1.254
tcp my-web.1 my-web.2 10.0.1.2
check "status is fine" in_lab n1 "$weft" status
check "network ls shows the network" sh -c "'$weft' lab exec $lab n1 -- '$weft' network ls | grep -q my-network"
check "its VNI is 4097" sh -c "'$weft' lab exec $lab n1 -- '$weft' network inspect my-network | grep -q '\"com.docker.network.driver.overlay.vxlanid_list\": \"4097\"'"
check "the table names the other VTEP" sh -c "'$weft' lab exec $lab n1 -- '$weft' fdb | grep -q '02:42:0a:00:01:02.* dst '"
check "an unknown flag is a usage error" sh -c "'$weft' status --jsn 2>/dev/null; [ \$? = 2 ]"
check "an agent that is not there is exit code 4" sh -c "'$weft' --socket /run/weft-none.sock status 2>/dev/null; [ \$? = 4 ]"
pp "$weft" lab down "$lab"
check "down twice is fine" "$weft" lab down "$lab"
finish
