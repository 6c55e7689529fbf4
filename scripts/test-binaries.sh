#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: test-binaries.sh DIRECTORY[:TARGET]…
# Builds the workspace's tests as `make test` does and prints the test programs of the packages in those directories (or
# only that test target of one), one a line: directory, tab, program.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

messages=$(cargo test --workspace --no-run --message-format=json-render-diagnostics)
for spec in "$@"; do
    dir=${spec%%:*}
    target='"kind":'
    [ "$spec" = "$dir" ] || target="\"kind\":\[\"test\"\].*\"name\":\"${spec#*:}\""
    found=$(grep -F "\"manifest_path\":\"$root/$dir/Cargo.toml\"" <<<"$messages" | grep '"test":true' | grep "$target" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | sort -u)
    [ -n "$found" ] || { echo "test-binaries: no tests in $dir" >&2; exit 1; }
    while read -r program; do
        printf '%s\t%s\n' "$root/$dir" "$program"
    done <<<"$found"
done
