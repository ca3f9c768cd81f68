# Shared by scripts/demo and scripts/test: finding cargo, installing what is missing, saying what goes on.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n next: %s\n' "$1" "$2" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "$0 makes network namespaces and needs root" "sudo $0"
}

# sudo drops the caller's PATH, and rustup lives in the caller's home.
find_cargo() {
    local home
    for home in "${CARGO_HOME:-}" "$HOME/.cargo" "$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)/.cargo"; do
        if [ -n "$home" ] && [ -x "$home/bin/cargo" ]; then
            PATH=$home/bin:$PATH
            if [ -z "${RUSTUP_HOME:-}" ] && [ -d "${home%/.cargo}/.rustup" ]; then
                export RUSTUP_HOME=${home%/.cargo}/.rustup
            fi
            break
        fi
    done
    export PATH
    command -v cargo >/dev/null || die "cargo is not installed" "install Rust 1.95 or newer, by rustup or your distribution"
}

# install_packages COMMAND=PACKAGE:REASON...: by apt, only what is missing, saying what and why.
install_packages() {
    local item command package missing=()
    for item in "$@"; do
        command=${item%%=*} package=${item#*=} package=${package%%:*}
        if ! PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null; then
            printf 'missing: %-12s package %-24s %s\n' "$command" "$package" "${item#*:}"
            missing+=("$package")
        fi
    done
    PATH=$PATH:/usr/sbin:/sbin
    export PATH
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "this is no Debian system, so nothing was installed" "install by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # No package may start a daemon of its own on this machine.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made=1
    fi
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || { [ -z "$made" ] || rm -f $policy; die "apt could not install ${missing[*]}" "see its messages above"; }
    [ -z "$made" ] || rm -f $policy
}

# What weft could leave behind, as one line of counts.
leftovers() {
    printf 'netns=%s links=%s nft-tables=%s agents=%s\n' \
        "$(ip netns list 2>/dev/null | wc -l)" \
        "$(ip -o link show | wc -l)" \
        "$(nft list tables 2>/dev/null | wc -l)" \
        "$(pgrep -c -x weft || true)"
}
