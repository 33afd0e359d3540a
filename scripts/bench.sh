#!/bin/bash
# usage: bench.sh [OPTION]...
# Builds dsfs for release and measures how fast it is, beside what the machine allows and beside other
# file systems; --help lists the options, --list what is measured. Prints tables; exit status 0 when
# it ran. What it needs besides a build comes with `scripts/setup.sh --bench`.
set -eu
cd "$(dirname "$0")/.."
build=${DSFS_BENCH_BUILD:-build-bench/release}
case " $* " in
*" --list "* | *" --help "* | *" -h "*) ;;
*)
	[ -f "$build/build.ninja" ] || meson setup "$build" --buildtype=release >/dev/null
	ninja -C "$build" src/cli/dsfs tests/bench/bench_{read,receive,delay,fuse} >&2
	;;
esac
DSFS=$(realpath -m "$build/src/cli/dsfs") exec python3 tests/bench/bench.py "$@"
