#!/usr/bin/env bash
# An agent killed without warning: workloads keep their interfaces, and a restart brings traffic back
# within a second, with nothing doubled. A ping every ten milliseconds runs all the while; the clock
# starts before the program does. Nobody tells the agent anything: it has its state file.
#
#   my-web.1 ── n1 (killed, restarted) ══ underlay ══ n2 ── my-web.2
. "$(dirname "$0")/lib.sh"

links() { ip netns list | grep -c "$lab" || true; }

# first_reply SINCE UNTIL: the time of the first answer between two times, nothing if there is none.
first_reply() {
    awk -F'[][]' -v since="$1" -v until="$2" '/bytes from/ && $2 > since && $2 < until { print $2; exit }' "$answers"
}

now() { date +%s.%N; }
ms_between() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%d", (b - a) * 1000 }'; }
answered_since() { [ -n "$(first_reply "$1" inf)" ]; }
silent_between() { [ -z "$(first_reply "$1" "$2")" ]; }

up --nodes 2
answers=$(mktemp)
trap 'code=$?; set +e; "$weft" lab down "$lab" >/dev/null 2>&1; rm -f "$answers"; exit $code' EXIT
in_lab my-web.1 ping -D -i 0.01 10.0.1.2 >"$answers" &
pinging=$!
wait_until 5 "ping before" answered_since 0
before=$(links)
times=()
for round in 1 2 3 4 5 6 7 8 9 10; do
    pp "$weft" lab kill "$lab" n1
    killed=$(now)
    check "round $round: the workload keeps its interface" in_lab my-web.1 ip link show dev eth0 up
    sleep 0.1 # the time of ten pings
    started=$(now)
    check "round $round: nobody forwards" silent_between "$killed" "$started"
    pp "$weft" lab start "$lab" n1 --untold
    wait_until 5 "round $round: an answer" answered_since "$started"
    took=$(ms_between "$started" "$(first_reply "$started" inf)")
    times+=("$took")
    check "round $round: traffic is back $took ms after the start" test "$took" -lt 1000
done
kill "$pinging"
wait "$pinging" 2>/dev/null || true
printf '%s\n' "${times[@]}" | sort -n |
    awk '{ t[NR] = $1 } END { printf "first answer after the start: median %d ms, max %d ms\n", t[int((NR + 1) / 2)], t[NR] }'
check "as many namespaces as before" test "$(links)" = "$before"
tcp my-web.1 my-web.2 10.0.1.2
finish
