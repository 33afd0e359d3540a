#!/bin/bash
# usage: run.sh [-s SECONDS] [-b BUILD_DIR] [TARGET]...
# Fuzzes the parsers of stored bytes with clang's libFuzzer under ASan and UBSan, SECONDS (60) each,
# starting from corpus/TARGET. What it finds on the way stays in BUILD_DIR/found/TARGET; an input that
# breaks a target ends the run with an error, and belongs into the corpus with the fix.
set -eu
seconds=60
build=
while getopts s:b: option; do
	case $option in
	s) seconds=$OPTARG ;;
	b) build=$OPTARG ;;
	*) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${build:-$root/build-fuzz}
[ $# -gt 0 ] || set -- $(ls "$here/corpus")
CC=$(command -v clang-14 || command -v clang) || { echo "clang is not installed" >&2; exit 77; }
export CC
if [ ! -f "$build/build.ninja" ]; then
	meson setup "$build" "$root" -Dtests=enabled -Dbuildtype=debugoptimized -Db_lundef=false \
		-Db_sanitize=address,undefined -Dc_args=-fsanitize=fuzzer-no-link >"$build.log" 2>&1 ||
		{ tail -20 "$build.log" >&2; exit 1; }
fi
for target; do
	ninja -C "$build" "tests/fuzz/fuzz_$target" >"$build.log" 2>&1 || { tail -20 "$build.log" >&2; exit 1; }
	mkdir -p "$build/found/$target"
	echo "== $target"
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 "$build/tests/fuzz/fuzz_$target" \
		-max_total_time="$seconds" -max_len=8192 -rss_limit_mb=1024 -print_final_stats=1 \
		-artifact_prefix="$build/found/$target-" -verbosity=0 \
		"$build/found/$target" "$here/corpus/$target"
done
