#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a container's network is made of, from the inside out to the kernel's tables.
source "$(dirname "$0")/lib.sh"

container web
container client
web_server web
policy web-from-client.yaml tutorial-web
inside client curl -s -m 5 "http://[$(address web 6)]/" >/dev/null
next
show_inside web ip -brief address show dev eth0
show_inside web ip -6 route
show_inside web ip route
next
show pilus endpoint header web
next
show bash -c "pilus endpoint get web -o yaml | sed '/^    /d; /^health/,\$d'"
next
show pilus bpf endpoint list
show pilus bpf policy list
next
show bash -c "pilus bpf metrics list | grep -E 'REASON|Forwarded'"
next
show pilus endpoint config web Trace=flow
exec 3< <(exec pilus monitor -v -t trace --to web -n 2 2>&1)
read -r -u 3 _
inside client curl -s -m 5 "http://[$(address web 6)]/" >/dev/null
echo '$ pilus monitor -v -t trace --to web -n 2'
grep TRACE <&3
