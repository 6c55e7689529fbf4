#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: vm-run.sh KERNEL_DIR [-m MiB] -- COMMAND [ARGUMENT…]
# Boots the kernel unpacked in KERNEL_DIR and runs COMMAND there as root, in this very file system and directory. The guest
# sees the host's files but writes to memory only, and finds PILUS_VM set. Exit status is that of COMMAND, 124 for a timeout, 125 if
# the guest died.
# PILUS_VM_TIMEOUT: seconds (300). PILUS_VM_MODULES: more kernel modules, separated by spaces.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

usage() {
    echo "usage: vm-run.sh KERNEL_DIR [-m MiB] -- COMMAND [ARGUMENT…]" >&2
    exit 2
}
[ $# -ge 1 ] || usage
kernel_dir=$(realpath "$1")
shift
memory=1024
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        -m) memory=${2:?}; shift 2 ;;
        *) usage ;;
    esac
done
[ $# -ge 2 ] || usage
shift

modules="virtio_pci 9pnet_virtio 9p overlay
    veth dummy vxlan geneve netkit sch_ingress cls_bpf act_bpf sch_fq
    nf_tables nft_ct nft_nat nft_masq nft_chain_nat ${PILUS_VM_MODULES:-}"

vmlinuz=$(find "$kernel_dir/boot" -name 'vmlinuz-*' | sort -V | tail -1)
[ -n "$vmlinuz" ] || { echo "vm-run: no kernel in $kernel_dir" >&2; exit 125; }
version=${vmlinuz##*/vmlinuz-}
module_dir=$kernel_dir/lib/modules/$version
stamp=$(printf '%s\n' "$version" "$modules" "$(sha256sum <"$0")" | sha256sum | cut -c 1-16)
initramfs=$kernel_dir/initramfs-$stamp.gz

# What the guest starts from: busybox, the modules in the order of their needs, and an init that hands over to the host's files.
build_initramfs() {
    local tree module file name
    tree=$(mktemp -d)
    mkdir -p "$tree"/{bin,proc,sys,dev,host,share,memory,root,modules}
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for name in sh mount mkdir insmod uname ip cat chroot sync sleep; do
        ln -s busybox "$tree/bin/$name"
    done
    [ -f "$module_dir/modules.dep" ] || depmod -b "$kernel_dir" "$version"
    # A module that this kernel has built in, or not at all, is left out.
    for module in $modules; do
        modprobe -d "$kernel_dir" -S "$version" --show-depends "$module" 2>/dev/null | awk '$1 == "insmod" { print $2 }' || true
    done | awk '!seen[$0]++' >"$tree/list"
    while read -r file; do
        name=${file##*/}
        name=${name%.xz}
        name=${name%.zst}
        case $file in
            *.xz) xz -dc "$file" >"$tree/modules/$name" ;;
            *.zst) zstd -qdc "$file" >"$tree/modules/$name" ;;
            *) cp "$file" "$tree/modules/$name" ;;
        esac
        echo "$name" >>"$tree/modules/order"
    done <"$tree/list"
    rm "$tree/list"
    cat >"$tree/init" <<'INIT'
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read module; do insmod /modules/$module; done </modules/order
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro hostroot /host
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /share
mount -t tmpfs -o size=75% memory /memory
mkdir /memory/upper /memory/work /dev/shm /dev/pts
# Everything is the host's, nothing that is written gets there.
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
for dir in proc sys dev; do mount --rbind /$dir /root/$dir; done
mount -t tmpfs run /root/run
mkdir -p /root/run/vm
mount --bind /share /root/run/vm
ip link set lo up
echo 1 >/proc/sys/net/core/bpf_jit_enable
echo "kernel $(uname -r)"
chroot /root /bin/bash /run/vm/command
echo $? >/share/status
sync
echo 1 >/proc/sys/kernel/printk
echo o >/proc/sysrq-trigger
sleep 60
INIT
    chmod +x "$tree/init"
    (cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) >"$initramfs.$$"
    rm -rf "$tree"
    rm -f "$kernel_dir"/initramfs-*.gz
    mv "$initramfs.$$" "$initramfs"
}
(
    flock 9
    [ -f "$initramfs" ] || build_initramfs
) 9>"$kernel_dir/lock"

share=$(mktemp -d)
trap 'rm -rf "$share"' EXIT
{
    # The caller's settings that matter to what runs here.
    while IFS='=' read -r -d '' name value; do
        case $name in
            PATH | LIBCLANG_PATH | HOME | LANG | PILUS_* | CARGO_* | RUST_* | RUST*) printf 'export %s=%q\n' "$name" "$value" ;;
        esac
    done < <(env -0)
    echo 'export PILUS_VM=1'
    printf 'cd %q\n' "$PWD"
    printf '%q ' "$@"
    echo
} >"$share/command"

boot() {
    timeout --foreground "${PILUS_VM_TIMEOUT:-300}" qemu-system-x86_64 -M q35,usb=off,vmport=off "$@" \
        -smp 2 -m "$memory" -nodefaults -no-user-config -display none -serial stdio -no-reboot \
        -kernel "$vmlinuz" -initrd "$initramfs" \
        -append "console=ttyS0 quiet loglevel=3 panic=-1 tsc=unstable random.trust_cpu=on mitigations=off" \
        -fsdev "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap" \
        -device virtio-9p-pci,fsdev=host,mount_tag=hostroot \
        -fsdev "local,id=share,path=$share,security_model=none,multidevs=remap" \
        -device virtio-9p-pci,fsdev=share,mount_tag=share </dev/null
}

status=0
if [ "${PILUS_VM_ACCEL:-tcg}" = kvm ]; then
    boot -accel kvm -cpu host | sed -u 's,\r$,,' || status=$?
else
    boot -accel tcg,thread=multi -cpu max | sed -u 's,\r$,,' || status=$?
fi
if [ -f "$share/status" ]; then
    exit "$(cat "$share/status")"
fi
if [ "$status" -eq 124 ]; then
    echo "vm-run: no end after ${PILUS_VM_TIMEOUT:-300} s" >&2
    exit 124
fi
echo "vm-run: the guest died before the command ended" >&2
exit 125
