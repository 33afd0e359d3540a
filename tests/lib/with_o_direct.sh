#!/bin/bash
# usage: with_o_direct.sh [--cachestat] COMMAND [ARG...]
# Runs a test program with a TMPDIR whose files can be read past the page cache: the one that is set, else
# /var/tmp or the working directory. Exit status: COMMAND's; 77 where none of these has O_DIRECT. (A tmpfs takes
# the flag, but its files live in the page cache.) With --cachestat also 77 where the kernel does not tell what is in
# the page cache (cachestat(2), Linux 6.5; a container's seccomp profile may forbid it).
set -u
needs_cachestat=
if [ "${1:-}" = --cachestat ]; then
	needs_cachestat=1
	shift
fi
[ $# -gt 0 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }

has_o_direct() {
	local file
	case $(stat -f -c %T "$1" 2>/dev/null) in tmpfs | ramfs) return 1 ;; esac
	file=$(mktemp "$1/dsfs-o-direct.XXXXXX" 2>/dev/null) || return 1
	dd if=/dev/zero of="$file" bs=4096 count=1 conv=fsync 2>/dev/null &&
		dd if="$file" of=/dev/null bs=4096 iflag=direct 2>/dev/null
	set -- $?
	rm -f "$file"
	return "$1"
}

# 451 is its number wherever Linux has it but on alpha. {off, len} and {cache, dirty, writeback, evicted, recently evicted}.
has_cachestat() {
	python3 - "$0" <<-'END'
		import ctypes, os, sys
		call = ctypes.CDLL(None, use_errno=True).syscall
		with open(sys.argv[1], "rb") as file:
		    r = call(451, file.fileno(), (ctypes.c_uint64 * 2)(), (ctypes.c_uint64 * 5)(), 0)
		sys.exit(os.strerror(ctypes.get_errno()) if r else 0)
	END
}

if [ "$needs_cachestat" ] && ! why=$(has_cachestat 2>&1); then
	echo "with_o_direct.sh: no cachestat(2), which needs Linux 6.5: $why" >&2
	exit 77
fi
for dir in "${TMPDIR:-/tmp}" /var/tmp "$PWD"; do
	if has_o_direct "$dir"; then
		TMPDIR=$dir exec "$@"
	fi
done
echo "with_o_direct.sh: no O_DIRECT in ${TMPDIR:-/tmp}, /var/tmp or $PWD" >&2
exit 77
