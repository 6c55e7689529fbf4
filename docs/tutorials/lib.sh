# SPDX-License-Identifier: Apache-2.0
# Shared by the tutorials' scripts. Needs root and a running pilus-agent; PILUS_SOCKET names its socket if it is elsewhere.
# Containers are network namespaces called tutorial-NAME; they and the policies are removed at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

names=()
policies=()
background=()

# Prints a command as one would type it, runs it, and says so if it fails.
show() {
    local status=0
    if [ "$1 $2" = 'bash -c' ]; then printf '$ %s\n' "$3"; else printf '$ %s\n' "$*"; fi
    "$@" 2>&1 || status=$?
    [ "$status" = 0 ] || echo "(exit status $status)"
}

# Output so far is one block of the page, what follows the next.
next() {
    echo '----'
}

# A network namespace with the label app=NAME.
container() {
    names+=("$1")
    ip netns add "tutorial-$1"
    show pilus endpoint add "$1" --netns "tutorial-$1" --label "app=$1"
}

# inside NAME COMMAND...
inside() {
    local name=$1
    shift
    ip netns exec "tutorial-$name" "$@"
}

# As show, for a command inside a container.
show_inside() {
    local name=$1
    shift
    show ip netns exec "tutorial-$name" "$@"
}

# address NAME 4|6
address() {
    pilus endpoint get "$1" -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["ipv" + sys.argv[1]])' "$2"
}

policy() {
    policies+=("$2")
    show pilus policy import --wait "$1"
}

# A web server in a container, on both families.
web_server() {
    inside "$1" python3 -m http.server --bind :: 80 --directory pages >/dev/null 2>&1 &
    background+=($!)
    until inside "$1" curl -s -o /dev/null http://[::1]/ && inside "$1" curl -s -o /dev/null http://127.0.0.1/; do :; done
}

clean_up() {
    local each
    for each in "${background[@]}"; do kill "$each" 2>/dev/null || true; done
    for each in "${policies[@]}"; do pilus policy delete "k8s:io.cilium.k8s.policy.name=$each" >/dev/null 2>&1 || true; done
    for each in "${names[@]}"; do
        pilus endpoint delete "$each" >/dev/null || true
        ip netns delete "tutorial-$each" || true
    done
}
trap clean_up EXIT
