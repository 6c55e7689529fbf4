#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: install-templates.sh install|uninstall DESTINATION
# The installed template tree belongs to the user, who may have edited it. An edited tree is kept beside, under another name,
# never overwritten and never removed.
set -euo pipefail
action=${1:?} destination=${2:?}
source=$(cd "$(dirname "$0")/../bpf-templates" && pwd)
sums=$destination.sha256

checksums() {
    (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum)
}

if [ -d "$destination" ]; then
    if [ -f "$sums" ] && [ "$(checksums "$destination")" = "$(cat "$sums")" ]; then
        rm -r "$destination"
    else
        kept=$destination.edited-$(date -u +%Y%m%dT%H%M%SZ)
        mv "$destination" "$kept"
        echo "kept the edited templates in $kept"
    fi
fi
rm -f "$sums"
if [ "$action" = install ]; then
    mkdir -p "$destination"
    (cd "$source" && find . -type f -print0) | while IFS= read -r -d '' file; do
        install -D -m 644 "$source/$file" "$destination/$file"
    done
    checksums "$destination" >"$sums"
fi
