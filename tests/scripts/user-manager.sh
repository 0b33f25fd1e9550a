#!/bin/sh
# Runs a script under a systemd user manager that is made for it and shares nothing with the one that
# may run here: mount namespace, runtime directory and control groups of its own. As root, with
#     unshare --mount --propagation private sh user-manager.sh DIR SCRIPT
# DIR is where home and runtime directory of it lie. Exits with 77 where there is none to be had.
set -u
dir=$1
script=$2
name=qk-test-$$
groups=

leave() {
    # Back to where we came from, or our groups cannot be removed.
    while read -r group; do
        [ -n "$group" ] || continue
        echo $$ > "$(dirname "$group")/cgroup.procs" 2> /dev/null
        find "$group" -depth -type d -exec rmdir {} + 2> /dev/null
    done <<EOF
$groups
EOF
}

# The manager takes all processes of its own group along: so it gets one that holds nothing else, in
# each hierarchy. Read before the first is entered.
own=$(cat /proc/self/cgroup)
while IFS=: read -r _ controllers path; do
    case $controllers in
        '') mounted=/sys/fs/cgroup/unified; [ -d $mounted ] || mounted=/sys/fs/cgroup ;;
        name=*) mounted=/sys/fs/cgroup/${controllers#name=} ;;
        *) mounted=/sys/fs/cgroup/$controllers ;;
    esac
    parent=${mounted}${path%/}
    [ -e "$parent/cgroup.procs" ] || continue
    group=$parent/$name
    mkdir "$group" || { leave; exit 77; }
    groups="$groups
$group"
    if [ -e "$group/cpuset.cpus" ] && [ "$controllers" = cpuset ]; then
        cat "$parent/cpuset.cpus" > "$group/cpuset.cpus"
        cat "$parent/cpuset.mems" > "$group/cpuset.mems"
    fi
    echo $$ > "$group/cgroup.procs" || { leave; exit 77; }
done <<EOF
$own
EOF
[ -n "$groups" ] || exit 77

# Only this namespace sees it: systemd's programs ask there whether it runs.
mount -t tmpfs tmpfs /run || { leave; exit 77; }
mkdir -p /run/systemd/system "/run/user/$(id -u)"
chmod 700 "/run/user/$(id -u)"
export XDG_RUNTIME_DIR="/run/user/$(id -u)" HOME="$dir" XDG_CONFIG_HOME="$dir/.config"
unset DBUS_SESSION_BUS_ADDRESS NOTIFY_SOCKET

# Not its default target: nothing that a user of this machine enabled is started.
/lib/systemd/systemd --user --unit=paths.target --log-level=warning > /dev/null 2>&1 &
manager=$!
tries=0
until [ "$(systemctl --user is-system-running 2> /dev/null)" = running ]; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ] || ! kill -0 $manager 2> /dev/null; then
        kill $manager 2> /dev/null
        leave
        exit 77
    fi
    sleep 0.1
done
sh -eu "$script"
code=$?
kill $manager
wait $manager
leave
exit $code
