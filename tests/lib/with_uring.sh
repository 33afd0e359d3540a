#!/bin/bash
# usage: with_uring.sh COMMAND [ARG...]
# Runs a test program while the kernel offers fuse-over-io_uring: the module parameter enable_uring is
# Y as long as any such program runs, and afterwards what it was before. Exit status: COMMAND's; 77
# where the kernel has no such parameter, or this user may not write it.
set -u
[ $# -gt 0 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
parameter=/sys/module/fuse/parameters/enable_uring
# Each program holds a shared lock on the file; it holds what the last of them is to restore.
before=/run/dsfs-test-enable-uring
skip() {
	echo "with_uring.sh: fuse-over-io_uring is not to be had: $1" >&2
	exit 77
}

[ -e "$parameter" ] || modprobe fuse 2>/dev/null
[ -e "$parameter" ] || skip "the kernel has no $parameter"
{ exec 9>>"$before"; } 2>/dev/null || skip "$before cannot be written: not root"
flock -s 9
if [ "$(cat "$parameter")" != Y ]; then
	echo N >"$before"
	{ echo Y >"$parameter"; } 2>/dev/null || skip "$parameter cannot be written"
fi
finish() {
	if flock -n -x 9 && [ -s "$before" ]; then
		cat "$before" >"$parameter"
		: >"$before"
	fi
}
trap finish EXIT
child=
trap '[ -z "$child" ] || kill -TERM "$child"; wait; exit 143' HUP INT TERM
# Nothing that COMMAND leaves in the background keeps the lock.
"$@" 9>&- &
child=$!
wait $child
