#!/bin/bash
# usage: with_mounts.sh PROGRAM [ARG...]
# Runs it in a mount namespace of its own, so that what it mounts ends with it; 77 where that is not allowed.
unshare --mount --propagation private mount -t tmpfs -o size=64k none /mnt 2>/dev/null || {
	echo "no mount namespace of our own: not root" >&2
	exit 77
}
exec unshare --mount --propagation private "$@"
