#!/bin/bash
# usage: own_mounts.sh PROGRAM [ARG...]
# Runs it in a mount namespace of its own, so that what it mounts ends with it; 77 where that is not allowed.
unshare --mount --propagation private mount -t tmpfs -o size=64k none /mnt 2>/dev/null || {
	echo "no mount namespace of our own: not root" >&2
	exit 77
}
# The namespace starts with a copy of every mount, and a copy keeps a mount's process alive after its umount: those
# of tests that run beside are let go of.
exec unshare --mount --propagation private bash -c 'umount -al -t fuse.dsfs; exec "$@"' - "$@"
