#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: kernel-fetch.sh SERIES (6.1, 6.12, 7 …)
# Prints a directory with Debian's newest kernel of that series, fetched and unpacked once: from the releases that this system
# uses, else from unstable, whose package lists are kept here and not given to the system.
# Exit 3: it cannot be had here; standard error says why. That is no failure of anything tested.
set -euo pipefail

series=${1:?usage: kernel-fetch.sh SERIES}
root=$(cd "$(dirname "$0")/.." && pwd)
kernels=${CARGO_TARGET_DIR:-$root/target}/kernels
cache=$kernels/$series
mkdir -p "$cache"

unavailable() {
    echo "$*" >&2
    exit 3
}
command -v apt-get >/dev/null && command -v apt-cache >/dev/null || unavailable "not a Debian system"
[ "$(dpkg --print-architecture)" = amd64 ] || unavailable "only for amd64"

# One at a time: all series share the package lists, and a directory is complete or absent.
exec 9>"$kernels/lock"
flock 9

# How apt is asked: the system's way, or unstable's.
apt=()

# Packages of one kernel a line, newest first. Signed and unsigned builds are the same kernel; newer ones are in two parts.
candidates() {
    local names=$(apt-cache "${apt[@]}" pkgnames linux- | grep -E "^linux-(image|binary)-${series//./\\.}\." | sort -rV)
    local version="${series//./\\.}(\.[0-9]+)+(-[0-9]+|\+(deb|bpo)[0-9]+)-amd64"
    grep -E "^linux-binary-$version\$" <<<"$names" | head -2 | sed 's/^linux-binary-\(.*\)/& linux-modules-\1/' || true
    grep -E "^linux-image-$version\$" <<<"$names" | head -3 || true
    grep -E "^linux-image-$version-unsigned\$" <<<"$names" | head -2 || true
}

# What no virtual machine needs is two thirds of it.
unpack() {
    local package
    for package in "$1"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$1" --exclude='*/kernel/sound' --exclude='*/drivers/gpu' \
            --exclude='*/drivers/media' --exclude='*/drivers/net/ethernet' --exclude='*/drivers/net/wireless' \
            --exclude='*/drivers/infiniband' --exclude='*/drivers/scsi' --exclude='*/drivers/staging' --exclude=./usr/share
        rm -f "$package"
    done
    # Newer packages keep everything below /usr/lib/modules, the kernel too.
    if [ -d "$1/usr/lib/modules" ]; then
        mkdir -p "$1/lib" "$1/boot"
        mv "$1/usr/lib/modules" "$1/lib/modules"
        for kernel in "$1"/lib/modules/*/vmlinuz; do
            version=$(basename "$(dirname "$kernel")")
            mv "$kernel" "$1/boot/vmlinuz-$version"
            # They lie in a package of their own, and nobody here asks for them.
            touch "$1/lib/modules/$version"/modules.{order,builtin,builtin.modinfo}
        done
    fi
}

fetch() {
    local names name work
    while read -r -a names; do
        name=${names[0]:-}
        [ -n "$name" ] || continue
        if [ -f "$cache/$name/complete" ]; then
            echo "$cache/$name"
            return 0
        fi
        work=$(mktemp -d "$cache/.fetch.XXXXXX")
        # Without a sandbox of its own: the directory is ours alone.
        if (cd "$work" && apt-get -q "${apt[@]}" -o APT::Sandbox::User=root download "${names[@]}" >"$cache/fetch.log" 2>&1); then
            unpack "$work"
            touch "$work/complete"
            rm -rf "${cache:?}/$name"
            mv "$work" "$cache/$name"
            echo "$cache/$name"
            return 0
        fi
        rm -rf "$work"
    done < <(candidates)
    return 1
}

# Package lists of unstable, from where the system has its own.
use_unstable() {
    local lists=$kernels/unstable mirror
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        awk '/^ *#/ { next } /^URIs:/ { print $2; exit } /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /^[a-z+]+:\/\//) { print $i; exit } }')
    [ -n "$mirror" ] || return 1
    mkdir -p "$lists/lists/partial" "$lists/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$lists/sources.list"
    apt=(-o "Dir::Etc::sourcelist=$lists/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$lists/lists"
        -o "Dir::Cache=$lists" -o Acquire::Languages=none -o APT::Sandbox::User=root)
}

fetch && exit 0
# What was fetched from there before is good enough.
use_unstable && fetch && exit 0
apt=()
# Lists may be absent or older than the archive.
if [ "$(id -u)" -eq 0 ]; then
    apt-get -q -o DPkg::Lock::Timeout=300 update >"$cache/fetch.log" 2>&1 || true
elif command -v sudo >/dev/null; then
    sudo -n apt-get -q update >"$cache/fetch.log" 2>&1 || true
fi
fetch && exit 0
if use_unstable; then
    apt-get -q "${apt[@]}" update >"$cache/fetch.log" 2>&1 || true
    fetch && exit 0
fi
[ -n "$(candidates)" ] || unavailable "no package of the $series series is known here"
unavailable "the package could not be fetched: $(grep -m1 '^E:' "$cache/fetch.log" || echo 'no reason given')"
