#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Three Docker containers and a policy by label between them. Needs a running pilus-agent, pilus-docker and dockerd, and an image
# that has ping. Removes everything again.
set -euo pipefail

image=${IMAGE:-busybox}
here=$(dirname "$0")
names='web client stranger'

cleanup() {
    pilus policy delete k8s:io.cilium.k8s.policy.name=example-web >/dev/null || true
    for name in $names; do
        docker rm -f "example-$name" >/dev/null 2>&1 || true
    done
    docker network rm example >/dev/null 2>&1 || true
}
trap cleanup EXIT

docker network create -d pilus --ipam-driver pilus --ipv6 example >/dev/null
for name in $names; do
    docker run -d --name "example-$name" --net example --label app="$name" "$image" sleep 1000000 >/dev/null
done
pilus policy import --wait "$here/policy.yaml"
pilus endpoint list

fields='{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}} {{.IPAddress}}{{end}}'
for address in $(docker inspect -f "$fields" example-web); do
    docker exec example-client ping -q -c 1 -W 10 "$address" >/dev/null
    echo "client reaches $address"
    if docker exec example-stranger ping -q -c 1 -W 1 "$address" >/dev/null; then
        echo "stranger reaches $address, although no rule admits it" >&2
        exit 1
    fi
    echo "stranger does not"
done
