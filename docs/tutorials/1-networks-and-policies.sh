#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Three containers, and a policy by labels between them.
source "$(dirname "$0")/lib.sh"

container web
container client
container stranger
next
show pilus endpoint list
next
web_server web
show_inside stranger curl -s -m 5 "http://[$(address web 6)]/"
show_inside stranger curl -s -m 5 "http://$(address web 4)/"
next
show cat web-from-client.yaml
policy web-from-client.yaml tutorial-web
next
for family in 6 4; do
    host=$(address web $family)
    [ $family = 4 ] || host="[$host]"
    show_inside client curl -s -m 5 "http://$host/"
    show_inside stranger curl -s -m 1 "http://$host/"
done
next
show pilus policy explain --from stranger --to web --dport 80/tcp
show pilus policy explain --from client --to web --dport 80/tcp
next
show pilus policy delete k8s:io.cilium.k8s.policy.name=tutorial-web
show_inside stranger curl -s -m 5 "http://[$(address web 6)]/"
