#!/bin/sh
# Builds crates in sandboxes whose tools and libraries come from different systems, and fails unless
# each crate has one root, whatever the system:
#
#   host    this machine
#   bare    Debian 13 with nothing but what the recipe needs
#   devel   Debian 13 with pkg-config, libssl-dev, zlib1g-dev and cmake as well
#
# usage: tests/scripts/other-usr.sh [CRATE[@VER]...]
#
# Without arguments it builds hexyl (Rust alone), b3sum (C and assembly) and fd-find (C behind a
# configure script and make). Only on demand: it needs root for debootstrap, the network, 1 GB below
# /var/tmp and, for the default crates on two cores, about half an hour.
#
#   QK_BIN=FILE      the qk to test, instead of the workspace's
#   QK_SYSTEMS=DIR   keep both Debian systems there, and take them from there the next time
#   QK_SUITE=NAME    another release of Debian than 13, trixie
#   QK_MIRROR=URL    where debootstrap gets Debian from, instead of where apt does
#   QK_TOOLCHAINS    as for qk
set -eu

SUITE=${QK_SUITE:-trixie}
# What the recipe names and a minimal Debian lacks.
BARE=make,binutils
DEVEL=pkg-config,libssl-dev,zlib1g-dev,cmake

[ $# -gt 0 ] || set -- hexyl@0.17.0 b3sum@1.8.7 fd-find@10.2.0
cd "$(dirname "$0")/../.."

fail() {
    echo "other-usr: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "debootstrap makes another system's root directory, which needs root"
if ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null ||
        fail "debootstrap is missing: install it with the distribution's package manager"
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends debootstrap >&2 ||
        fail "debootstrap is missing: apt-get update && apt-get install debootstrap"
fi
command -v python3 >/dev/null || fail "python3 is missing: apt-get install python3"

# The mirror that apt uses here.
mirror() {
    command -v apt-get >/dev/null || return 0
    apt-get indextargets --format '$(SITE)' 'Identifier: Packages' 'Origin: Debian' 'Component: main' |
        head -n 1
}

MIRROR=${QK_MIRROR:-$(mirror)}
[ -n "$MIRROR" ] || fail "apt names no Debian mirror here: set QK_MIRROR"

WORK=$(mktemp -d /var/tmp/qk-other-usr.XXXXXX)
trap 'rm -rf --one-file-system "$WORK"' EXIT
trap 'exit 130' INT TERM HUP
SYSTEMS=${QK_SYSTEMS:-$WORK/systems}
mkdir -p "$SYSTEMS"

# system NAME PACKAGES: a Debian below $SYSTEMS/NAME. Made under another name first, so that one that
# was interrupted is not taken for a whole one.
system() {
    [ ! -e "$SYSTEMS/$1" ] || return 0
    rm -rf --one-file-system "$SYSTEMS/$1.part"
    echo "debootstrap: $SUITE with $2" >&2
    debootstrap --variant=minbase --include="$2" "$SUITE" "$SYSTEMS/$1.part" "$MIRROR" \
        >"$WORK/debootstrap.log" 2>&1 || {
        tail -n 20 "$WORK/debootstrap.log" >&2
        fail "debootstrap failed"
    }
    mv "$SYSTEMS/$1.part" "$SYSTEMS/$1"
}

system bare "$BARE"
system devel "$BARE,$DEVEL"

# Were they the same, equal roots would say nothing.
for library in libc.so.6 libm.so.6; do
    file=usr/lib/x86_64-linux-gnu/$library
    if cmp -s "/$file" "$SYSTEMS/bare/$file"; then
        fail "this machine and $SUITE have the same $library: set QK_SUITE to another release of Debian"
    fi
done
[ ! -e "$SYSTEMS/bare/usr/bin/cmake" ] || fail "bare has cmake"
for file in bin/cmake bin/pkg-config include/openssl/ssl.h include/zlib.h; do
    [ -e "$SYSTEMS/devel/usr/$file" ] || fail "devel lacks /usr/$file"
done

if [ -z "${QK_BIN:-}" ]; then
    cargo build --quiet --package qk
    QK_BIN=${CARGO_TARGET_DIR:-target}/debug/qk
fi
"$QK_BIN" setup >&2
if [ -z "${QK_TOOLCHAINS:-}" ]; then
    QK_TOOLCHAINS=${QK_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/qk}/toolchains
fi
# No network is joined in a home of our own, so that nothing is signed or told to anybody.
export QK_TOOLCHAINS QK_HOME="$WORK/home"

member() {
    python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))
for name in sys.argv[2].split("."): value = value[name]
print(value)' "$WORK/built.json" "$1"
}

different=0
for crate in "$@"; do
    roots=
    for name in host bare devel; do
        case $name in
        host) root=/ ;;
        *) root=$SYSTEMS/$name ;;
        esac
        "$QK_BIN" build "$crate" --no-publish --json --sandbox-root "$root" >"$WORK/built.json" || {
            cat "$WORK/built.json" >&2
            fail "$crate does not build with $name"
        }
        printf '%-20s %-6s %-32s %s\n' "$crate" "$name" "$(member environment.os)" "$(member root)"
        roots="$roots $(member root)"
    done
    if [ "$(echo $roots | tr ' ' '\n' | sort -u | wc -l)" != 1 ]; then
        echo "$crate: the roots differ" >&2
        different=1
    fi
done
exit $different
