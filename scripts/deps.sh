#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: deps.sh [runtimes]
# Installs the Debian packages that building and testing need, those that are missing only. Touches nothing when all are there.
# With `runtimes` also those of container runtimes, and Vagrant, whose tests are skipped without them: Debian starts dockerd when
# it is installed, and that one changes the machine's own network.
set -euo pipefail

# Package, and what it is here for.
packages='
clang-19            compiles the eBPF programs, at build time and for changed templates
libclang1-19        the same compiler in-process
clang-format-19     make lint: style of the C sources
gcc                 links Rust programs and builds libbpf
libc6-dev           C headers for both
make                builds libbpf (and runs this)
pkg-config          tells where libelf and zlib are
libelf-dev          libbpf reads ELF objects with it
zlib1g-dev          libelf reads compressed sections with it
bpftool             a second opinion on programs and maps, in tests and by hand
iproute2            ip and tc: namespaces and a second opinion on devices and filters, in tests and demo
iputils-ping        traffic of tests and demo
curl                HTTP over TCP and over unix sockets, in tests and demo
python3             small servers and clients of tests and demo
ca-certificates     cargo and curl check certificates with it
qemu-system-x86     make test-kernels: boots other kernels
busybox-static      make test-kernels: the guest starts from it
cpio                make test-kernels: packs what the guest starts from
kmod                make test-kernels: which modules a module needs
xz-utils            make test-kernels: unpacks kernel modules
zstd                make test-kernels: unpacks kernel modules, where they are packed so
nftables            tests: host rules beside ours
tcpdump             tests: what is really on the wire
iperf3              make bench: throughput
protobuf-compiler   tests: builds the client of the CRI of containerd
'

if [ "${1:-}" = runtimes ]; then
    packages+='
docker.io           tests: real containers of Docker, and of containerd, which comes with it
containernetworking-plugins  tests: the loopback plugin, which the CRI of containerd always calls
podman              tests: real containers of podman with CNI
vagrant             tests: whether vagrant/Vagrantfile is right
vagrant-libvirt     tests: the provider that it is for
'
fi

missing=()
while read -r name _; do
    [ -n "$name" ] || continue
    case $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || true) in
        installed) ;;
        *) missing+=("$name") ;;
    esac
done <<<"$packages"

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "deps: this is no Debian system; install the equivalents of:" >&2
    echo "$packages" | awk 'NF { print "  " $1 }' >&2
    exit 1
fi

sudo=()
if [ "$(id -u)" -ne 0 ]; then
    sudo=(sudo)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ ${#sudo[@]} -gt 0 ] && ! command -v sudo >/dev/null; then
        echo "deps: missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "deps: installing ${missing[*]}"
    # Another package manager at work is waited for.
    apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update || echo "deps: the package lists could not be renewed; trying with what is there" >&2
    if ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; then
        echo "deps: could not install: ${missing[*]} (Debian 12 or later has them all)" >&2
        exit 1
    fi
fi

if ! command -v cargo >/dev/null; then
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$(dirname "$0")/../Cargo.toml")
    echo "deps: cargo is missing; install Rust ${wanted:-stable} or later" >&2
    exit 1
fi
