#!/bin/bash
# Checks, without building, that the checked-in kernel is the one that the manifest describes. Exit 0 or 1.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")"

failed=0
fail() { echo "kernel/check.sh: $*" >&2; failed=1; }

# value SECTION KEY: one value of manifest.toml.
value() { awk -F' = ' -v s="[$1]" -v k="$2" '/^\[/ { in_s = ($0 == s) } in_s && $1 == k { gsub(/"/, "", $2); print $2 }' manifest.toml; }
expect() { [ -n "$2" ] && [ "$2" = "$3" ] || fail "$1: manifest says \`$2\`, found \`$3\`"; }
sum() { sha256sum | cut -d' ' -f1; }

expect "config sha256" "$(value build config_sha256)" "$(sum <config)"
expect "vmlinux.zst size" "$(value vmlinux_zst size)" "$(stat -c %s vmlinux.zst)"
expect "vmlinux.zst sha256" "$(value vmlinux_zst sha256)" "$(sum <vmlinux.zst)"
expect "modules sha256" "$(value modules sha256)" "$(cd modules && sha256sum -- * | sum)"
expect "patches sha256" "$(value source patches_sha256)" "$(cat patches/*.patch | sum)"
if command -v zstd >/dev/null; then
    expect "vmlinux sha256" "$(value vmlinux sha256)" "$(zstd -q -d -c vmlinux.zst | sum)"
else
    echo "kernel/check.sh: skipped the sum of the uncompressed vmlinux, zstd is not installed" >&2
fi
for name in SOURCE_VERSION:version SOURCE_PACKAGE:package SOURCE_SHA256:tarball_sha256; do
    expect "build.sh ${name%%:*}" "$(value source "${name##*:}")" "$(sed -n "s/^${name%%:*}=//p" build.sh)"
done

# required-options: one name per line, `NAME` must be =y and `!NAME` must be off.
missing=$(awk '
    NR == FNR { if (sub(/=y$/, "")) on[$0] = 1; else if (sub(/=.*/, "")) on[$0] = 1; next }
    /^[[:space:]]*(#|$)/ { next }
    /^!/ { if (on["CONFIG_" substr($1, 2)]) print $1; next }
    !on["CONFIG_" $1] { print $1 }' config required-options)
[ -z "$missing" ] || fail "config breaks required-options:" $missing

[ $failed = 0 ] && echo "kernel: manifest, sums and required options agree"
exit $failed
