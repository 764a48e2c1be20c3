#!/bin/bash
# Builds the microagent guest kernel from Debian's kernel source, the same bytes every time.
#
#   kernel/build.sh [BUILD_DIR]            build; replace config, vmlinux.zst, modules/ and manifest.toml
#   kernel/build.sh --compare [BUILD_DIR]  build in a fresh folder; compare with what is checked in, change nothing
#
# Needs: apt-get install linux-source-6.12 gcc make patch flex bison bc libelf-dev libssl-dev zstd xz-utils dwarves kmod
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

# The one source that this kernel is built from. To move on: change these three, build, boot, commit.
SOURCE_PACKAGE=linux-source-6.12
SOURCE_VERSION=6.12.117-1~deb12u1
SOURCE_SHA256=585a4a074597aefa2b1a68ada83a3184ba351c127544dea80618bbcceaa3961f

TARBALL=${LINUX_SOURCE_TARBALL:-/usr/src/$SOURCE_PACKAGE.tar.xz}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
JOBS=${JOBS:-$(nproc)}

# Whatever would otherwise differ between two builds is fixed here.
export KBUILD_BUILD_TIMESTAMP='2025-01-01 00:00:00 UTC'
export KBUILD_BUILD_USER=microagent KBUILD_BUILD_HOST=microagent KBUILD_BUILD_VERSION=1
export SOURCE_DATE_EPOCH=1735689600
unset ARCH CROSS_COMPILE KCFLAGS KAFLAGS KCPPFLAGS KBUILD_OUTPUT LOCALVERSION MAKEFLAGS LDFLAGS CFLAGS

die() { echo "kernel/build.sh: $*" >&2; exit 1; }
sha() { sha256sum "$1" | cut -d' ' -f1; }

main() {
    local compare=false
    if [ "${1:-}" = --compare ]; then compare=true; shift; fi
    case "${1:-}" in -*) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
    local build
    if $compare; then
        build=${1:-$(mktemp -d)}
        [ -z "$(ls -A "$build" 2>/dev/null)" ] || die "$build is not empty; --compare wants a fresh folder"
    else
        build=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/microagent-kernel}
    fi
    mkdir -p "$build"
    build=$(cd "$build" && pwd)

    need_tools
    unpack "$build"
    configure "$build"
    compile "$build"
    write_manifest "$build/out"

    if $compare; then compare_with_checked_in "$build/out"; else install_results "$build/out"; fi
}

need_tools() {
    local tool
    for tool in gcc make patch flex bison bc zstd xz strip pahole depmod; do
        command -v "$tool" >/dev/null || die "\`$tool\` is missing; see the package list at the top of this script"
    done
    [ -r "$TARBALL" ] || die "$TARBALL is missing: apt-get install $SOURCE_PACKAGE=$SOURCE_VERSION"
    [ "$(sha "$TARBALL")" = "$SOURCE_SHA256" ] || die "$TARBALL is not $SOURCE_PACKAGE $SOURCE_VERSION (sha256 differs)"
}

# Unpacks and patches once per build folder; a tree from other sources or half done is thrown away.
unpack() {
    local tree=$1/linux patch stamp
    stamp="$SOURCE_SHA256 $(patches_sha)"
    if [ "$(cat "$tree/.microagent-source" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "$tree"
        mkdir -p "$tree"
        tar -xJf "$TARBALL" -C "$tree" --strip-components=1 --no-same-owner
        for patch in "$HERE"/patches/*.patch; do patch -s -f -p1 -d "$tree" <"$patch"; done
        echo "$stamp" >"$tree/.microagent-source"
    fi
}

patches_sha() { cat "$HERE"/patches/*.patch | sha256sum | cut -d' ' -f1; }

# tinyconfig + fragment; every line of the fragment must have survived the dependency check.
configure() {
    local tree=$1/linux out=$1/out
    mkdir -p "$out"
    make -s -C "$tree" tinyconfig >/dev/null 2>&1
    (cd "$tree" && scripts/kconfig/merge_config.sh -m .config "$HERE/config.fragment" >/dev/null)
    make -s -C "$tree" olddefconfig
    local line name lost=0
    while read -r line; do
        case $line in
            CONFIG_*=*) grep -qxF "$line" "$tree/.config" || { echo "lost: $line" >&2; lost=1; } ;;
            "# CONFIG_"*" is not set")
                name=${line#\# }; name=${name%% *}
                ! grep -q "^$name=" "$tree/.config" || { echo "not off: $name" >&2; lost=1; } ;;
        esac
    done <"$HERE/config.fragment"
    [ $lost = 0 ] || die "the fragment asks for options that this source does not grant"
    cp "$tree/.config" "$out/config"
}

# Built inside its own tree, so that the compiler only ever sees relative paths.
compile() {
    local tree=$1/linux out=$1/out
    make -s -C "$tree" -j "$JOBS" vmlinux
    strip --strip-all -R .comment -o "$out/vmlinux" "$tree/vmlinux"
    readelf -n "$out/vmlinux" 2>/dev/null | grep -q Xen || die "the PVH entry note is gone from vmlinux"
    zstd -q -19 --single-thread -f "$out/vmlinux" -o "$out/vmlinux.zst"
    make -s -C "$tree" kernelrelease >"$out/release"
    list_modules "$tree" "$out"
    gcc --version | head -1 >"$out/compiler"
    ld --version | head -1 >"$out/linker"
}

# What `modprobe` reads: every module is built in, and it says so.
list_modules() {
    local tree=$1 out=$2 release file
    release=$(cat "$out/release")
    rm -rf "$out/staging" "$out/modules"
    mkdir -p "$out/staging/lib/modules/$release" "$out/modules"
    make -s -C "$tree" modules.builtin modules.builtin.modinfo
    cp "$tree/modules.builtin" "$tree/modules.builtin.modinfo" "$out/staging/lib/modules/$release"
    : >"$out/staging/lib/modules/$release/modules.order"
    depmod -b "$out/staging" "$release"
    for file in modules.builtin modules.builtin.bin modules.builtin.alias.bin modules.order \
        modules.dep modules.dep.bin; do
        install -m 644 "$out/staging/lib/modules/$release/$file" "$out/modules/$file"
    done
}

modules_sha() { (cd "$1" && sha256sum -- * | sha256sum | cut -d' ' -f1); }

write_manifest() {
    local out=$1
    cat >"$out/manifest.toml" <<TOML
# Written by kernel/build.sh; checked by kernel/check.sh. Do not edit.
release = "$(cat "$out/release")"
licence = "GPL-2.0-only WITH Linux-syscall-note"

# The complete corresponding source: this Debian package, with patches, config and build.sh of this folder.
[source]
distribution = "Debian 12"
source_package = "linux-6.12"
package = "$SOURCE_PACKAGE"
version = "$SOURCE_VERSION"
tarball_sha256 = "$SOURCE_SHA256"
patches_sha256 = "$(patches_sha)"

[build]
compiler = "$(cat "$out/compiler")"
linker = "$(cat "$out/linker")"
pahole = "$(pahole --version)"
config_sha256 = "$(sha "$out/config")"

# ELF, entered through its PVH note.
[vmlinux]
size = $(stat -c %s "$out/vmlinux")
sha256 = "$(sha "$out/vmlinux")"

# The same, compressed with zstd -19; the window is at most 8 MiB.
[vmlinux_zst]
size = $(stat -c %s "$out/vmlinux.zst")
sha256 = "$(sha "$out/vmlinux.zst")"

# Index files of /lib/modules.
[modules]
sha256 = "$(modules_sha "$out/modules")"
TOML
}

install_results() {
    local file
    rm -rf "$HERE/modules" && cp -r "$1/modules" "$HERE/modules"
    for file in config vmlinux.zst manifest.toml; do install -m 644 "$1/$file" "$HERE/$file.new" && mv "$HERE/$file.new" "$HERE/$file"; done
    echo "kernel $(cat "$1/release"): vmlinux $(stat -c %s "$1/vmlinux") bytes, compressed $(stat -c %s "$1/vmlinux.zst")"
    echo "uncompressed copy: $1/vmlinux"
}

compare_with_checked_in() {
    local file differ=0
    for file in config vmlinux.zst manifest.toml; do
        if cmp -s "$1/$file" "$HERE/$file"; then echo "same: $file"; else echo "DIFFERENT: $file (new one in $1)"; differ=1; fi
    done
    if diff -r "$1/modules" "$HERE/modules" >/dev/null; then echo "same: modules"; else echo "DIFFERENT: modules"; differ=1; fi
    zstd -q -d -c "$HERE/vmlinux.zst" | cmp -s - "$1/vmlinux" && echo "same: vmlinux (uncompressed)" || { echo "DIFFERENT: vmlinux (uncompressed)"; differ=1; }
    return $differ
}

main "$@"
