#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Connects three network namespaces as a container runtime does, and shows a policy between them. Needs root, a running
# pilus-agent, and `pilus` and `pilus-cni` in PATH. Removes everything again.
set -euo pipefail

socket=${PILUS_SOCKET:-/run/pilus/pilus.sock}
here=$(dirname "$0")
names='web client stranger'

# cni VERB NAME: what a runtime hands to a plugin is environment and, on stdin, configuration.
cni() {
    CNI_COMMAND=$1 CNI_CONTAINERID=example-$2 CNI_NETNS=/run/netns/example-$2 CNI_IFNAME=eth0 pilus-cni <<JSON
{ "cniVersion": "1.0.0", "name": "example", "type": "pilus-cni", "socket": "$socket",
  "args": { "labels": [{ "key": "app", "value": "$2" }] } }
JSON
}

cleanup() {
    pilus --socket "$socket" policy delete k8s:io.cilium.k8s.policy.name=example-web >/dev/null || true
    for name in $names; do
        cni DEL "$name" || true
        ip netns delete "example-$name" 2>/dev/null || true
    done
}
trap cleanup EXIT

for name in $names; do
    ip netns add "example-$name"
    cni ADD "$name"
done
pilus --socket "$socket" policy import --wait "$here/policy.yaml"
pilus --socket "$socket" endpoint list

for address in $(ip -n example-web -o addr show dev eth0 scope global | awk '{ sub("/.*", "", $4); print $4 }'); do
    ip netns exec example-client ping -q -c 1 -W 10 "$address" >/dev/null
    echo "client reaches $address"
    if ip netns exec example-stranger ping -q -c 1 -W 1 "$address" >/dev/null; then
        echo "stranger reaches $address, although no rule admits it" >&2
        exit 1
    fi
    echo "stranger does not"
done
