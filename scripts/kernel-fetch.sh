#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: kernel-fetch.sh SERIES (6.1, 6.12 …)
# Prints a directory with Debian's newest kernel of that series, fetched and unpacked once.
# Exit 3: it cannot be had here; standard error says why. That is no failure of anything tested.
set -euo pipefail

series=${1:?usage: kernel-fetch.sh SERIES}
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${CARGO_TARGET_DIR:-$root/target}/kernels/$series
mkdir -p "$cache"

unavailable() {
    echo "$*" >&2
    exit 3
}
command -v apt-get >/dev/null && command -v apt-cache >/dev/null || unavailable "not a Debian system"
[ "$(dpkg --print-architecture)" = amd64 ] || unavailable "only for amd64"

# One at a time: both series share the package lists, and a directory is complete or absent.
exec 9>"$cache/../lock"
flock 9

# Newest first; an unsigned build is the same kernel.
candidates() {
    local names=$(apt-cache pkgnames "linux-image-$series." | sort -rV)
    local version="^linux-image-${series//./\\.}\.[0-9]+(-[0-9]+|\+(deb|bpo)[0-9]+)-amd64"
    grep -E "$version\$" <<<"$names" | head -3 || true
    grep -E "$version-unsigned\$" <<<"$names" | head -2 || true
}

fetch() {
    local name work
    for name in $(candidates); do
        if [ -f "$cache/$name/complete" ]; then
            echo "$cache/$name"
            return 0
        fi
        work=$(mktemp -d "$cache/.fetch.XXXXXX")
        # Without a sandbox of its own: the directory is ours alone.
        if (cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$name" >"$cache/fetch.log" 2>&1); then
            # What no virtual machine needs is two thirds of it.
            dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work" --exclude='*/kernel/sound' --exclude='*/drivers/gpu' \
                --exclude='*/drivers/media' --exclude='*/drivers/net/ethernet' --exclude='*/drivers/net/wireless' \
                --exclude='*/drivers/infiniband' --exclude='*/drivers/scsi' --exclude='*/drivers/staging' ./boot ./lib
            rm -f "$work"/*.deb
            touch "$work/complete"
            rm -rf "${cache:?}/$name"
            mv "$work" "$cache/$name"
            echo "$cache/$name"
            return 0
        fi
        rm -rf "$work"
    done
    return 1
}

fetch && exit 0
# Lists may be absent or older than the archive.
if [ "$(id -u)" -eq 0 ]; then
    apt-get -q -o DPkg::Lock::Timeout=300 update >"$cache/fetch.log" 2>&1 || true
elif command -v sudo >/dev/null; then
    sudo -n apt-get -q update >"$cache/fetch.log" 2>&1 || true
fi
fetch && exit 0
[ -n "$(candidates)" ] || unavailable "no package of the $series series is known here"
unavailable "the package could not be fetched: $(grep -m1 '^E:' "$cache/fetch.log" || echo 'no reason given')"
