# Shared by the numbered scripts: each uses weft as a person would, through its command line.
# shellcheck shell=bash
# A script is called with the weft binary as its argument (default: the release build), as root.

set -euo pipefail
weft=${1:-$(cd "$(dirname "$0")/.." && pwd)/target/release/weft}
[ -x "$weft" ] || { echo "error: $weft is not built; next: cargo build --release" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "error: needs root for network namespaces; next: sudo $0" >&2; exit 1; }
lab=t$$
checks=0

# pp COMMAND...: prints a command, then runs it.
pp() {
    printf '$ %s\n' "${*//$weft/weft}"
    "$@"
}

# up OPTIONS...: a lab of this script's own, removed however the script ends.
up() {
    trap 'code=$?; set +e; "$weft" lab down "$lab" >/dev/null 2>&1; exit $code' EXIT
    trap 'exit 130' INT TERM
    pp "$weft" lab up --name "$lab" --weft-binary "$weft" "$@"
}

# in_lab PLACE COMMAND...: runs a command in a node or workload of the lab.
in_lab() {
    local place=$1
    shift
    "$weft" lab exec "$lab" "$place" -- "$@"
}

# check WHAT COMMAND...: the command must succeed.
check() {
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then
        checks=$((checks + 1))
        printf 'ok   %s\n' "$what"
    else
        printf 'FAIL %s\n     %s\n%s\n' "$what" "${*//$weft/weft}" "$output"
        exit 1
    fi
}

# wait_until SECONDS WHAT COMMAND...: the command must succeed within the time; the time taken is told.
wait_until() {
    local limit=$1 what=$2 begin
    shift 2
    begin=$(date +%s%N)
    until "$@" >/dev/null 2>&1; do
        if [ $((($(date +%s%N) - begin) / 1000000)) -gt $((limit * 1000)) ]; then
            printf 'FAIL %s: not within %s s\n' "$what" "$limit"
            exit 1
        fi
        sleep 0.05
    done
    checks=$((checks + 1))
    printf 'ok   %s after %d ms\n' "$what" $((($(date +%s%N) - begin) / 1000000))
}

# tcp FROM TO-WORKLOAD ADDRESS: one second of TCP must arrive.
tcp() {
    local from=$1 to=$2 address=$3 server
    "$weft" lab exec "$lab" "$to" -- iperf3 -s -1 >/dev/null 2>&1 &
    server=$!
    wait_until 5 "iperf3 listens in $to" "$weft" lab exec "$lab" "$to" -- sh -c "ss -ltn | grep -q :5201"
    check "TCP from $from to $to ($address)" in_lab "$from" iperf3 -c "$address" -t 1
    wait "$server" || true
}

finish() {
    printf '%d checks passed\n' "$checks"
}
