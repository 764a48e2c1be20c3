#!/bin/bash
# Builds a guest kernel for 64-bit ARM with Debian's cross compiler, from the source and the options of the x86-64 one.
# It is not checked in, because no agent for 64-bit ARM can be built here; `cargo xtask kernel-arm64` boots it.
#
#   kernel/arm64/build.sh BUILD_DIR        gives BUILD_DIR/Image and BUILD_DIR/config
#
# Needs: xtask/install-packages arm64
set -euo pipefail
export LC_ALL=C TZ=UTC ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-
export KBUILD_BUILD_TIMESTAMP='2025-01-01 00:00:00 UTC'
export KBUILD_BUILD_USER=microagent KBUILD_BUILD_HOST=microagent KBUILD_BUILD_VERSION=1
unset KCFLAGS KAFLAGS KCPPFLAGS KBUILD_OUTPUT LOCALVERSION MAKEFLAGS LDFLAGS CFLAGS
umask 022

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
COMMON=$(dirname "$HERE")

die() { echo "kernel/arm64/build.sh: $*" >&2; exit 1; }
# of NAME: a setting of the script that builds the kernel for x86-64.
of() { sed -n "s/^$1=//p" "$COMMON/build.sh"; }

main() {
    [ $# = 1 ] || die "name the folder to build in"
    mkdir -p "$1"
    cd "$1"
    unpack
    configure
    make -s -C linux -j "${JOBS:-$(nproc)}" Image
    cp linux/arch/arm64/boot/Image Image
    echo "kernel $(make -s -C linux kernelrelease) for arm64: $(stat -c %s Image) bytes"
}

# The same source with the same patches, once per build folder.
unpack() {
    local tarball patch stamp
    tarball=/usr/src/$(of SOURCE_PACKAGE).tar.xz
    [ -r "$tarball" ] || die "$tarball is missing: xtask/install-packages arm64"
    stamp=$(cat "$tarball" "$COMMON"/patches/*.patch | sha256sum)
    [ "$(cat linux/.microagent-source 2>/dev/null)" != "$stamp" ] || return 0
    [ "$(sha256sum <"$tarball" | cut -d' ' -f1)" = "$(of SOURCE_SHA256)" ] || die "$tarball is not $(of SOURCE_VERSION)"
    rm -rf linux
    mkdir linux
    tar -xJf "$tarball" -C linux --strip-components=1 --no-same-owner
    for patch in "$COMMON"/patches/*.patch; do patch -s -f -p1 -d linux <"$patch"; done
    echo "$stamp" >linux/.microagent-source
}

# The options of x86-64 without those that another processor does not have, and those of this one after them. Every line
# must have survived the dependency check, and the options that the product promises must be there.
configure() {
    local line name lost=0
    awk '
        # name LINE: the option of a line, without CONFIG_.
        function name(line) { sub(/^# /, "", line); sub(/^CONFIG_/, "", line); sub(/[= ].*/, "", line); return line }
        FILENAME ~ /left-out$/ { if ($1 !~ /^#/) left_out[$1] = 1; next }
        FILENAME ~ /arm64\/config.fragment$/ { if (/CONFIG_/) left_out[name($0)] = 1; next }
        /^CONFIG_|^# CONFIG_.* is not set$/ { if (!(name($0) in left_out)) print }
    ' "$HERE/left-out" "$HERE/config.fragment" "$COMMON/config.fragment" >fragment
    grep -E '^CONFIG_|^# CONFIG_.* is not set$' "$HERE/config.fragment" >>fragment
    make -s -C linux tinyconfig >/dev/null 2>&1
    (cd linux && scripts/kconfig/merge_config.sh -m .config ../fragment >/dev/null)
    make -s -C linux olddefconfig
    cp linux/.config config
    while read -r line; do
        case $line in
            CONFIG_*=*) grep -qxF "$line" config || { echo "lost: $line" >&2; lost=1; } ;;
            *)
                name=${line#\# }; name=${name%% *}
                ! grep -q "^$name=" config || { echo "not off: $name" >&2; lost=1; } ;;
        esac
    done <fragment
    while read -r name; do
        case $name in
            ''|'#'*) ;;
            '!'*) ! grep -qx "CONFIG_${name#!}=y" config || { echo "not off: ${name#!}" >&2; lost=1; } ;;
            *)
                grep -qx "CONFIG_$name=y" config || grep -qx "$name" "$HERE/left-out" ||
                    { echo "required: $name" >&2; lost=1; } ;;
        esac
    done <"$COMMON/required-options"
    [ $lost = 0 ] || die "this source does not grant all options"
}

main "$@"
