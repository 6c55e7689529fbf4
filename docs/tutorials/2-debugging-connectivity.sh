#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A connection that does not come about, and what says why.
source "$(dirname "$0")/lib.sh"

container web
container client
web_server web
policy wrong-port.yaml tutorial-wrong
host="[$(address web 6)]"
show_inside client curl -s -m 1 "http://$host/"
next
# It follows when it says so; what happens afterwards is seen.
exec 3< <(exec pilus monitor -v -t drop --to web -n 1 2>&1)
read -r -u 3 _
inside client curl -s -m 1 "http://$host/" || true
echo '$ pilus monitor -v -t drop --to web -n 1'
grep DROP <&3
next
show pilus policy explain --from client --to web --dport 80/tcp
show pilus bpf policy list
next
show pilus bpf ct list --endpoint web
next
show diff wrong-port.yaml right-port.yaml
policy right-port.yaml tutorial-wrong
show pilus policy explain --from client --to web --dport 80/tcp
show_inside client curl -s -m 5 "http://$host/"
