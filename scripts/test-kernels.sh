#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: test-kernels.sh COMMAND [ARGUMENT…]
# Runs COMMAND under kernels from the oldest that we promise to serve to the newest of Debian, in a virtual machine, each line marked with the kernel's series.
# A kernel that cannot be had here is reported as skipped, never as passed; only a command that failed makes this fail.
# PILUS_KERNELS: the series ("6.1 6.12 7"; the last is the newest that Debian has). PILUS_VM_MEMORY: MiB of each machine (1024).
# All but the newest of those that can be had find its series in PILUS_TEST_NEWER: a test that need not run under each kernel leaves it to that one.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: test-kernels.sh COMMAND [ARGUMENT…]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
memory=${PILUS_VM_MEMORY:-1024}
read -r -a series <<<"${PILUS_KERNELS:-6.1 6.12 7}"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# In a machine the agent would search for this library for longer than it then needs it.
library=$(ls -v /usr/lib/llvm-*/lib/libclang-[0-9]*.so.* 2>/dev/null | tail -1 || true)
[ -n "${LIBCLANG_PATH:-}" ] || [ -z "$library" ] || export LIBCLANG_PATH=$library

missing=
for tool in qemu-system-x86_64 busybox cpio modprobe; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null || missing="$tool is missing (make deps installs it)"
done
declare -A dirs
for kernel in "${series[@]}"; do
    if [ -n "$missing" ]; then
        echo "skipped: $missing" >"$results/$kernel"
    elif dir=$("$here/kernel-fetch.sh" "$kernel" 2>"$results/$kernel.reason"); then
        dirs[$kernel]=$dir
        newest=$kernel
    else
        echo "skipped: $(tail -1 "$results/$kernel.reason")" >"$results/$kernel"
    fi
done

run() {
    local kernel=$1 start=$SECONDS status=0
    local dir=${dirs[$kernel]:-}
    [ -n "$dir" ] || return 0
    [ "$kernel" = "$newest" ] || export PILUS_TEST_NEWER=$newest
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
    # Each in a shell of its own, as beside each other.
    for kernel in "${series[@]}"; do (run "$kernel" "$@"); done
fi

failed=0
for kernel in "${series[@]}"; do
    verdict=$(cat "$results/$kernel" 2>/dev/null || echo "FAILED: no result")
    echo "kernel $kernel: $verdict"
    case $verdict in FAILED*) failed=1 ;; esac
done
exit $failed
