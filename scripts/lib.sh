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

# missing_packages COMMAND=PACKAGE[,PACKAGE]:REASON...: says what is missing and why; the packages are in $missing.
missing_packages() {
    local item command packages
    missing=()
    for item in "$@"; do
        command=${item%%=*} packages=${item#*=} packages=${packages%%:*}
        if ! PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null; then
            printf 'missing: %-12s package %-24s %s\n' "$command" "$packages" "${item#*:}"
            IFS=, read -ra packages <<<"$packages"
            missing+=("${packages[@]}")
        fi
    done
    PATH=$PATH:/usr/sbin:/sbin
    export PATH
}

# install_packages COMMAND=PACKAGE[,PACKAGE]:REASON...: by apt, only what is missing; without any, apt is not run.
install_packages() {
    missing_packages "$@"
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "this is no Debian system, so nothing was installed" "install by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null || die "apt-get update failed" "see its messages above, or install by hand: ${missing[*]}"
    # No package may start a daemon of its own on this machine.
    local policy=/usr/sbin/policy-rc.d made= done=
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && made=1
    fi
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null && done=1
    [ -z "$made" ] || rm -f $policy
    [ -n "$done" ] || die "apt could not install ${missing[*]}" "see its messages above"
}

# What root built in somebody's checkout under sudo belongs to that person afterwards.
give_back() {
    if [ "$(id -u)" = 0 ] && [ -n "${SUDO_UID:-}" ] && [ "$(stat -c %u "$top")" = "$SUDO_UID" ] && [ -d "$top/target" ]; then
        chown -R --from=root "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$top/target"
    fi
}
