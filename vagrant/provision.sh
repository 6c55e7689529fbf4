#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a fresh Debian ready for Pilus: Rust by Debian's rustup, then what `make deps` and `make deps-runtimes` install.
set -euo pipefail

cd "${1:-$HOME/pilus}"
if ! command -v cargo >/dev/null; then
    sudo apt-get -q update
    sudo DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends rustup
fi
if command -v rustup >/dev/null; then
    rustup toolchain install stable --profile default
    rustup default stable
fi
scripts/deps.sh
# Docker's daemon may change this machine's network: it is nobody's but ours.
scripts/deps.sh runtimes
