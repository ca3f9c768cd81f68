#!/usr/bin/env bash
# Three labs, one after the other and two at once, leave nothing: links, namespaces, nft tables,
# processes are counted before and after.
. "$(dirname "$0")/lib.sh"

check "two labs at once do not meet, and leave nothing" "$weft" lab audit -- sh -c "
    set -e
    '$weft' lab up --name ${lab}a --nodes 2 --weft-binary '$weft'
    '$weft' lab up --name ${lab}b --nodes 2 --weft-binary '$weft'
    '$weft' lab exec ${lab}a my-web.1 -- ping -c 1 -W 2 10.0.1.2
    '$weft' lab exec ${lab}b my-web.1 -- ping -c 1 -W 2 10.0.1.2
    '$weft' lab down ${lab}a
    '$weft' lab exec ${lab}b my-web.1 -- ping -c 1 -W 2 10.0.1.2
    '$weft' lab down ${lab}b"
finish
