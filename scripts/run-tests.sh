#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: run-tests.sh LIST [ARGUMENT…]
# Runs the test programs of LIST (lines of test-binaries.sh), each in its package's directory and with the arguments, as
# cargo would. What a test skipped is said at the end.
set -uo pipefail
list=$(cat "${1:?usage: run-tests.sh LIST [ARGUMENT…]}")
shift

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()
while IFS=$'\t' read -r dir program; do
    name=${dir##*/}/${program##*/}
    name=${name%-*}
    echo "test program $name"
    start=$SECONDS
    # Nothing of a test's output is lost: a skip is printed, not failed.
    if ! (cd "$dir" && CARGO_MANIFEST_DIR=$dir "$program" --show-output --color=never "$@" </dev/null) 2>&1 | tee -a "$log" |
        grep --line-buffered -vE '^(running [0-9]+ tests?)?$'; then
        failed+=("$name")
    fi
    echo "test program $name took $((SECONDS - start)) s"
done <<<"$list"

skipped=$(grep -c '^skipped: ' "$log")
passed=$(grep -cE '^test .* \.\.\. ok$' "$log")
echo "test programs: $(wc -l <<<"$list"), tests passed or skipped: $passed, of these skipped: $skipped, programs failed: ${#failed[@]} ${failed[*]-}"
[ ${#failed[@]} -eq 0 ]
