#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: test-kernels.sh COMMAND [ARGUMENT…]
# Runs COMMAND under kernels from the oldest that we promise to serve to the newest of Debian, in a virtual machine, each line marked with the kernel's series.
# A kernel that cannot be had here is reported as skipped, never as passed; only a command that failed makes this fail.
# PILUS_KERNELS: the series ("6.1 6.12 7"; the last is the newest that Debian has). PILUS_VM_MEMORY: MiB of each machine (1024).
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: test-kernels.sh COMMAND [ARGUMENT…]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
memory=${PILUS_VM_MEMORY:-1024}
read -r -a series <<<"${PILUS_KERNELS:-6.1 6.12 7}"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

run() {
    local kernel=$1 dir start=$SECONDS status=0
    for tool in qemu-system-x86_64 busybox cpio modprobe; do
        if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null; then
            echo "skipped: $tool is missing (make deps installs it)" >"$results/$kernel"
            return
        fi
    done
    if ! dir=$("$here/kernel-fetch.sh" "$kernel" 2>"$results/$kernel.reason"); then
        echo "skipped: $(tail -1 "$results/$kernel.reason")" >"$results/$kernel"
        return
    fi
    "$here/vm-run.sh" "$dir" -m "$memory" -- "${@:2}" 2>&1 | sed -u "s/^/[$kernel] /" || status=$?
    if [ "$status" -eq 0 ]; then
        echo "passed: ${dir##*/}, $((SECONDS - start)) s" >"$results/$kernel"
    else
        echo "FAILED: ${dir##*/}, exit status $status, $((SECONDS - start)) s" >"$results/$kernel"
    fi
}

# Side by side where there is room for all machines and something over.
available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
if [ "$available" -gt $((${#series[@]} * (memory + 256) + 1024)) ]; then
    for kernel in "${series[@]}"; do run "$kernel" "$@" & done
    wait
else
    for kernel in "${series[@]}"; do run "$kernel" "$@"; done
fi

failed=0
for kernel in "${series[@]}"; do
    verdict=$(cat "$results/$kernel" 2>/dev/null || echo "FAILED: no result")
    echo "kernel $kernel: $verdict"
    case $verdict in FAILED*) failed=1 ;; esac
done
exit $failed
