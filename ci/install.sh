#!/bin/sh
# Installs a release of qk: downloads it, checks its SHA-256, and places one executable.
# Needs curl or wget, tar with gzip, and sha256sum or shasum. Cargo and Rust are not needed.
set -eu

VERSION=0.1.0

usage() {
    cat <<'USAGE'
Usage: install.sh --from URL [--sha256 HEX] [--version VERSION] [--to DIR]

  --from URL         the directory with the release's files
  --sha256 HEX       what the archive's SHA-256 has to be. Without it, the SHA256SUMS beside the
                     archive is asked, which finds a broken download and no forged one
  --version VERSION  another version than this script's own
  --to DIR           where the executable goes [default: cargo's bin, else ~/.local/bin]

The same can be said by QK_FROM, QK_SHA256, QK_VERSION and QK_TO.

Example:
  sh install.sh --from https://example.org/qk --sha256 "$(cat qk.sha256)" --to ~/.local/bin
USAGE
}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# Prints nothing and fails where the machine has no release of its own.
target() {
    case "$(uname -s) $(uname -m)" in
    'Linux x86_64') echo x86_64-unknown-linux-gnu ;;
    'Linux aarch64') echo aarch64-unknown-linux-gnu ;;
    *) return 1 ;;
    esac
}

# Fails for musl and for glibc older than 2.17.
glibc() {
    found=$(getconf GNU_LIBC_VERSION 2>/dev/null) || return 1
    found=${found#glibc }
    [ "${found%%.*}" -gt 2 ] && return 0
    minor=${found#*.}
    [ "${found%%.*}" -eq 2 ] && [ "${minor%%.*}" -ge 17 ]
}

# A file from a URL, which may be large and may be missing.
download() {
    if has curl; then
        curl --fail --silent --show-error --location --retry 3 --output "$2" "$1"
    elif has wget; then
        wget --quiet --tries=3 --output-document="$2" "$1"
    else
        fail 'neither curl nor wget is here: install one of them'
    fi
}

sha256() {
    if has sha256sum; then
        sha256sum "$1"
    elif has shasum; then
        shasum -a 256 "$1"
    else
        fail 'neither sha256sum nor shasum is here: install coreutils'
    fi | cut -d ' ' -f 1
}

main() {
    from=${QK_FROM:-} expected=${QK_SHA256:-} version=${QK_VERSION:-$VERSION} to=${QK_TO:-}
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --from | --sha256 | --version | --to)
            [ $# -ge 2 ] || fail "$1 needs a value" 2
            case $1 in
            --from) from=$2 ;;
            --sha256) expected=$2 ;;
            --version) version=$2 ;;
            --to) to=$2 ;;
            esac
            shift 2
            ;;
        *) fail "unknown argument $1; see --help" 2 ;;
        esac
    done
    [ -n "$from" ] || fail '--from is missing: the URL of the directory with the release; see --help' 2
    if [ -z "$to" ]; then
        to=${CARGO_HOME:-${HOME:-}/.cargo}/bin
        [ -d "$to" ] || to=${HOME:?HOME is not set: name a directory by --to}/.local/bin
    fi
    target=$(target) || fail "there is no release for $(uname -s) on $(uname -m): build qk with cargo" 16
    glibc || fail 'the release needs glibc 2.17 or newer, which this system does not have: build qk with cargo' 16

    archive=qk-$version-$target.tar.gz
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
    download "$from/$archive" "$scratch/$archive" || fail "$from/$archive cannot be downloaded" 14
    if [ -z "$expected" ]; then
        download "$from/SHA256SUMS" "$scratch/SHA256SUMS" || fail "$from/SHA256SUMS cannot be downloaded" 14
        expected=$(awk -v name="$archive" '$2 == name || $2 == "*" name { print $1 }' "$scratch/SHA256SUMS")
        [ -n "$expected" ] || fail "$from/SHA256SUMS does not name $archive" 15
    fi
    actual=$(sha256 "$scratch/$archive")
    [ "$actual" = "$expected" ] ||
        fail "$archive is not what was expected: its SHA-256 is $actual, not $expected; nothing was installed" 15
    tar -xzf "$scratch/$archive" -C "$scratch" qk || fail "$archive holds no qk" 15
    "$scratch/qk" --version >/dev/null || fail 'the program does not run on this system; nothing was installed' 16

    mkdir -p "$to" || fail "$to cannot be made: name another directory by --to"
    # Beside its place first, so that the last step is a rename.
    new=$to/.qk-$$
    trap 'rm -rf "$scratch" "$new"' EXIT
    cp "$scratch/qk" "$new" && chmod 755 "$new" && mv -f "$new" "$to/qk" ||
        fail "$to cannot be written to: name another directory by --to"
    printf 'installed %s to %s\n' "$("$to/qk" --version)" "$to/qk"
    case ":${PATH:-}:" in
    *":$to:"*) ;;
    *) printf 'note: %s is not in PATH\n' "$to" ;;
    esac
}

# At the end, so that a script that was cut off on its way does nothing.
main "$@"
