#!/bin/bash
# A real S3 server for tests: Ceph's radosgw over one monitor and one object store daemon in
# memory, all on loopback and all below one directory.
#
#	radosgw.sh start DIR [--port PORT] [--owner PID] [--host NAME]
#	radosgw.sh stop DIR		ends the daemons; their data are gone
#	radosgw.sh env DIR		prints the exports again
#	radosgw.sh bucket DIR NAME	creates one more bucket
#	radosgw.sh rgw-kill DIR		kills the gateway at once (connections are refused)
#	radosgw.sh rgw-start DIR	and brings it back on the same port, with the same data
#	radosgw.sh osd-pause DIR	every request hangs (the gateway accepts, the store is stopped)
#	radosgw.sh osd-resume DIR	and goes on
#
# `start` returns when the server has answered and the bucket exists, and prints lines to eval:
# AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION, BUCKET. DIR must be empty
# or absent. Ports are free ones unless --port names the gateway's. With --owner everything ends by
# itself when that process is gone, however it went: a test gives its own pid ($$).
# Virtual-host addressing works under http://BUCKET.localhost:PORT, or with NAME instead of localhost;
# other names but addresses are not known to it.
# Exit status: 77 (with the reason) where Ceph is not installed, 1 when it does not start.
set -eu

access_key=dsfstestkey
secret_key=dsfstestsecret
region=us-east-1
first_bucket=dsfs-test
host=localhost

die() {
	echo "radosgw.sh: $*" >&2
	exit 1
}

usage() {
	sed -n '2,22s/^# \{0,1\}//p' "$0"
	exit "$1"
}

case ${1-} in
-h | --help) usage 0 ;;
start | stop | env | bucket | rgw-kill | rgw-start | osd-pause | osd-resume) command=$1 ;;
*) usage 2 >&2 ;;
esac
[ $# -ge 2 ] || usage 2 >&2
dir=$(realpath -m -- "$2")
shift 2
conf=$dir/ceph.conf

# The pids of our daemon NAME. A process is ours when it was started with our configuration file:
# no pid file can be stale, and no foreign process is ever met.
pids_of() {
	local proc argv
	for proc in /proc/[0-9]*; do
		argv=()
		mapfile -d '' -t argv 2>/dev/null <"$proc/cmdline" || continue
		[ "${#argv[@]}" -ge 3 ] && [ "${argv[0]##*/}" = "$1" ] && [ "${argv[2]}" = "$conf" ] &&
			echo "${proc#/proc/}"
	done
	return 0
}

# The process that ends everything when the owner is gone; the kernel wakes it, it never polls.
watchdog='
import os, select, sys
owner, script, dir = sys.argv[2:]
try:
    select.select([os.pidfd_open(int(owner))], [], [])
except ProcessLookupError:
    pass
os.execv(script, [script, "stop", dir])'

watchdogs() {
	local proc argv
	for proc in /proc/[0-9]*; do
		argv=()
		mapfile -d '' -t argv 2>/dev/null <"$proc/cmdline" || continue
		[ "${#argv[@]}" = 7 ] && [ "${argv[3]}" = dsfs-radosgw-watchdog ] &&
			[ "${argv[6]}" = "$dir" ] && echo "${proc#/proc/}"
	done
	return 0
}

# In a session of its own, and holding none of the caller's descriptors: a test runner waits until
# its pipe is closed.
launch() {
	setsid "$@" </dev/null >>"$dir/daemons.log" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
	launched=$!
}

# Waits for a condition while the daemon that was launched last lives: wait_for DAEMON SECONDS COMMAND...
# By its pid, since it has its name only some time after it was launched; a zombie has no exe.
wait_for() {
	local daemon=$1 deadline=$((SECONDS + $2))
	shift 2
	until "$@" >>"$dir/setup.log" 2>&1; do
		readlink "/proc/$launched/exe" >/dev/null || { echo "$daemon ended" >>"$dir/setup.log"; return 1; }
		[ $SECONDS -lt $deadline ] || { echo "$daemon: time out" >>"$dir/setup.log"; return 1; }
		sleep 0.05
	done
}

# No step may take for ever: a start that hangs is tried again.
bounded() {
	timeout -k 1 20 "$@"
}

ceph_says() {
	bounded ceph -c "$conf" --connect-timeout 10 "$@"
}

osd_is_up() {
	ceph_says osd stat | grep -q ' 1 up'
}

gateway_answers() {
	curl --noproxy '*' -s -o /dev/null --max-time 5 "http://127.0.0.1:$port/"
}

gateway_start() {
	launch radosgw -c "$conf" -n client.rgw.test -f
	wait_for radosgw 30 gateway_answers
}

create_bucket() {
	# Debian 12's curl signs S3 rightly only with this header given.
	curl --noproxy '*' -sS --fail --max-time 20 -X PUT -o /dev/null \
		--aws-sigv4 "aws:amz:$region:s3" --user "$access_key:$secret_key" \
		-H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "http://127.0.0.1:$port/$1"
}

# Free ports below those that the kernel gives to outgoing connections (ip_local_port_range, from
# 32768 unless set otherwise): none of these takes a port between its choice and its use.
free_ports() {
	python3 -c '
import random, socket, sys
socks = []
while len(socks) < int(sys.argv[1]):
    try:
        socks.append(socket.create_server(("127.0.0.1", random.randrange(10000, 32000))))
    except OSError:
        pass
print(*(s.getsockname()[1] for s in socks))' "$1"
}

write_conf() {
	cat >"$conf" <<EOF
[global]
	fsid = $(cat /proc/sys/kernel/random/uuid)
	mon host = v2:127.0.0.1:$mon_port
	mon initial members = test
	public addr = 127.0.0.1
	cluster addr = 127.0.0.1
	auth cluster required = none
	auth service required = none
	auth client required = none
	ms mon client mode = crc
	# One copy of everything, few placement groups, no waiting for a proposal: up in a second.
	osd pool default size = 1
	osd pool default min size = 1
	osd pool default pg num = 4
	osd pool default pgp num = 4
	osd pool default pg autoscale mode = off
	osd crush chooseleaf type = 0
	mon allow pool size one = true
	mon max pg per osd = 2000
	mon osd crush smoke test = false
	paxos propose interval = 0.01
	paxos min wait = 0.01
	# A nearly full disk is not this test's business.
	mon data avail warn = 1
	mon data avail crit = 1
	# Stopped for minutes by osd-pause and alive afterwards.
	mon osd report timeout = 86400
	osd op thread timeout = 86400
	osd op thread suicide timeout = 86400
	filestore op thread suicide timeout = 86400
	osd heartbeat grace = 86400
	# A killed gateway still watches for this long, and a new bucket waits for it.
	osd client watch timeout = 6
	objecter tick interval = 1
	run dir = $dir/run
	admin socket = $dir/run/\$name.asok
	log file = $dir/log/\$name.log
	mon cluster log file = $dir/log/cluster.log
	debug ms = 0
	debug osd = 0
	debug rgw = 0
	debug mon = 0
[mon]
	mon data = $dir/mon
[osd]
	osd data = $dir/osd
	osd objectstore = memstore
	memstore device bytes = 17179869184
[client.rgw.test]
	rgw data = $dir/rgw
	# Without nodelay every small GET takes 40 ms.
	rgw frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
	rgw thread pool size = 512
	rgw dns name = $host
	rgw enable usage log = false
	rgw enable ops log = false
EOF
}

bring_up() {
	local uuid
	mkdir -p "$dir"/{mon,osd,rgw,run,log}
	write_conf
	bounded ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *' &&
		bounded monmaptool --create --fsid "$(sed -n 's/^.*fsid = //p' "$conf")" \
			--addv test "[v2:127.0.0.1:$mon_port]" "$dir/monmap" &&
		bounded ceph-mon -c "$conf" -i test --mkfs --monmap "$dir/monmap" -k "$dir/keyring" || return 1
	launch ceph-mon -c "$conf" -i test -f
	uuid=$(cat /proc/sys/kernel/random/uuid)
	wait_for ceph-mon 20 ceph_says osd new "$uuid" &&
		bounded ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$uuid" || return 1
	launch ceph-osd -c "$conf" -i 0 -f
	wait_for ceph-osd 20 osd_is_up && gateway_start &&
		bounded radosgw-admin -c "$conf" -n client.rgw.test user create --uid=test \
			--display-name=test --access-key="$access_key" --secret-key="$secret_key" &&
		create_bucket "$first_bucket"
}

tear_down() {
	local name pids
	for name in radosgw ceph-osd ceph-mon; do
		pids=$(pids_of $name)
		# A throw-away cluster needs no orderly end, and a stopped daemon could not do one.
		[ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
	done
	for name in radosgw ceph-osd ceph-mon; do
		while [ -n "$(pids_of $name)" ]; do
			sleep 0.02
		done
	done
}

print_env() {
	cat <<EOF
export AWS_ACCESS_KEY_ID=$access_key
export AWS_SECRET_ACCESS_KEY=$secret_key
export AWS_ENDPOINT_URL=http://127.0.0.1:$port
export AWS_REGION=$region
export BUCKET=$first_bucket
EOF
}

start() {
	local owner= wanted= try tool
	port=
	while [ $# -ge 2 ]; do
		case $1 in
		--port) wanted=$2 ;;
		--owner) owner=$2 ;;
		--host) host=$2 ;;
		*) usage 2 >&2 ;;
		esac
		shift 2
	done
	[ $# = 0 ] || usage 2 >&2
	for tool in ceph-mon ceph-osd radosgw radosgw-admin ceph curl; do
		command -v $tool >/dev/null || { echo "radosgw.sh: $tool is not installed" >&2; exit 77; }
	done
	[ -z "$(ls -A "$dir" 2>/dev/null)" ] || die "$dir is not empty"
	mkdir -p "$dir"
	if [ -n "$owner" ]; then
		kill -0 "$owner" 2>/dev/null || die "no process $owner to be the owner"
		launch python3 -c "$watchdog" dsfs-radosgw-watchdog "$owner" "$(realpath "$0")" "$dir"
	fi
	trap tear_down EXIT
	trap 'exit 1' HUP INT TERM
	# A port that was free can be taken a moment later: then once more, with others.
	for try in 1 2 3; do
		read -r mon_port port < <(free_ports 2)
		port=${wanted:-$port}
		if bring_up >>"$dir/setup.log" 2>&1; then
			echo "$port" >"$dir/port"
			trap - EXIT
			print_env
			return
		fi
		tear_down
		mv "$dir/setup.log" "$dir/../setup-failed.$$.log"
		rm -rf "${dir:?}"/*
		mv "$dir/../setup-failed.$$.log" "$dir/setup.log.$try"
	done
	tail -20 "$dir/setup.log.$try" >&2
	die "does not start, see $dir"
}

if [ "$command" = start ]; then
	start "$@"
	exit
fi
[ -f "$conf" ] || [ "$command" = stop ] || die "no server in $dir"
port=$(cat "$dir/port" 2>/dev/null || true)
case $command in
stop)
	pids=$(watchdogs)
	[ -z "$pids" ] || kill $pids 2>/dev/null || true
	tear_down
	;;
env) print_env ;;
bucket) create_bucket "${1:?NAME}" ;;
rgw-kill) kill -KILL $(pids_of radosgw) ;;
rgw-start) gateway_start || die "the gateway does not start" ;;
osd-pause) kill -STOP $(pids_of ceph-osd) ;;
osd-resume) kill -CONT $(pids_of ceph-osd) ;;
esac
