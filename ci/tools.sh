#!/bin/sh
# What a CI job runs: installs qk, joins the network, fetches the tools. Everything is said by variables:
#
#   QK_FROM QK_VERSION QK_SHA256  the release of qk, as install.sh takes them; no QK_FROM: qk is in PATH
#   QK_NETWORK                    file or URL of the network; empty where qk.toml names it
#   QK_FINGERPRINT                that network's fingerprint; any other one is refused
#   QK_TOOLS                      crates, separated by blanks; empty for what qk.lock pins
#   QK_FALLBACK                   none (default) stops where nothing is proven, build compiles
#   CARGO_INSTALL_ROOT            tools go into its bin
set -eu

: "${CARGO_INSTALL_ROOT:?names the directory below which tools are installed}"
PATH=$CARGO_INSTALL_ROOT/bin:$PATH

[ -z "${QK_FROM:-}" ] || sh "$(dirname "$0")/install.sh" --to "$CARGO_INSTALL_ROOT/bin"
[ -z "${QK_NETWORK:-}" ] || qk join "$QK_NETWORK" ${QK_FINGERPRINT:+--fingerprint "$QK_FINGERPRINT"}

set -- --fallback "${QK_FALLBACK:-none}" --root "$CARGO_INSTALL_ROOT"
if [ -z "${QK_TOOLS:-}" ]; then
    exec qk fetch --locked "$@" ${QK_FINGERPRINT:+--accept-network "$QK_FINGERPRINT"}
fi
# Split at blanks, and no file names.
set -f
# shellcheck disable=SC2086
exec qk fetch "$@" -- $QK_TOOLS
