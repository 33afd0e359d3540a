#!/bin/bash
# usage: test.sh [--no-setup] [--stage NAME]...
# Installs what is missing, builds and runs everything that CI runs, and closes with one line
# "N passed, N failed[, N skipped]". Exit status 0 when something ran and nothing failed.
#
# Stages, all of them by default:
#	check	 the tree itself: format, file lengths, words
#	asan	 gcc, ASan + UBSan, -O1: every suite but `release` and `minute`; the include rules
#	clang	 clang, release, the system's libfuse: suites `unit` and `smoke`; src/fs for the bundled one, too
#	release	 gcc, release: suites `unit`, `smoke` and `release`
#	tsan	 gcc, TSan: suite `stress`
# Builds lie in build-test/STAGE and are kept for the next run.
# Environment: CI=true makes a skipped test a failure (see tests/README.md); TEST_LIMIT_S is the
# time after which a run is ended as failed (3000); TEST_BUDGET_S what it should take (1500).
set -u
cd "$(dirname "$0")/.." || exit 1
root=$PWD
setup=yes
stages=
while [ $# -gt 0 ]; do
	case $1 in
	--no-setup) setup=no ;;
	--stage)
		stages="$stages ${2:?--stage NAME}"
		shift
		;;
	*)
		sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
		exit 2
		;;
	esac
	shift
done
stages=${stages:-check asan clang release tsan}
limit_s=${TEST_LIMIT_S:-3000}
budget_s=${TEST_BUDGET_S:-1500}
# Tests wait a lot: one more at a time than there are cores.
jobs_n=$(($(nproc) + 1))

passed=0 failed=0 skipped=0
times=
tmp=$(mktemp -d "${TMPDIR:-/tmp}/dsfs-test.XXXXXX") || exit 1
# Some tests go on as another user.
chmod 755 "$tmp"

# Mounts below our directory, innermost first; a test that leaves one has a fault.
mounts_left() {
	awk -v dir="$tmp/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac
}

cleanup() {
	local mount
	mounts_left | while IFS= read -r mount; do
		umount -l "$(printf '%b' "$mount")" 2>/dev/null ||
			fusermount3 -uz "$(printf '%b' "$mount")" 2>/dev/null
	done
	rm -rf --one-file-system "$tmp"
}
trap cleanup EXIT
trap 'exit 130' HUP INT TERM

say() {
	printf '%s [%d:%02d] %s\n' '==' $((SECONDS / 60)) $((SECONDS % 60)) "$*"
}

# One test that is not meson's: NAME COMMAND...
check() {
	local name=$1 log=$tmp/check.log
	shift
	if timeout -k 5 300 "$@" >"$log" 2>&1 </dev/null; then
		passed=$((passed + 1))
		echo "   ok    $name"
	else
		failed=$((failed + 1))
		echo "   FAIL  $name"
		tail -60 "$log" | sed 's/^/    /'
	fi
}

# Runs within what is left of the time limit, in a process group of its own.
limited() {
	local left=$((limit_s - SECONDS))
	[ $left -gt 0 ] || return 124
	timeout -k 10 $left "$@" </dev/null
}

fail() {
	failed=$((failed + 1))
	echo "   FAIL  $*"
}

# Configures and builds: NAME MESON_OPTIONS... (CC from the environment)
build() {
	local name=$1 dir=build-test/$1 stamp target=all
	shift
	[ "$name" != clang-bundled ] || target='src/fs/libds_fs.a tests/stress/fuse_uring_stress'
	stamp="${CC:-cc} $*"
	if [ ! -f "$dir/build.ninja" ] || [ "$(cat "$dir/.options" 2>/dev/null)" != "$stamp" ]; then
		rm -rf "$dir"
		mkdir -p build-test
		if ! limited meson setup "$dir" -Dwerror=true -Dtests=enabled "$@" >"$tmp/$name.log" 2>&1
		then
			tail -30 "$tmp/$name.log"
			fail "$name: configure"
			return 1
		fi
		grep -E 'WARNING: libfuse' "$tmp/$name.log"
		echo "$stamp" >"$dir/.options"
	fi
	# The thread build is for a few programs only: meson test builds what they need.
	[ "$name" != tsan ] || return 0
	if ! limited ninja -C "$dir" $target >"$tmp/$name.log" 2>&1; then
		grep -vE '^\[[0-9]+/[0-9]+\]' "$tmp/$name.log" | head -60
		fail "$name: build"
		return 1
	fi
	say "$name: built"
}

# Runs a build's tests: NAME SUITE_OPTIONS...
run() {
	local name=$1 dir=build-test/$1 log rc report
	local rebuild=--no-rebuild
	shift
	[ "$name" != tsan ] || rebuild=
	log=$dir/meson-logs/testlog.json
	rm -f "$log"
	mkdir -p "$tmp/$name" "$tmp/sanitizer"
	chmod 1777 "$tmp/$name" "$tmp/sanitizer"
	# Reports go to files, so that those of a daemon in the background are met too.
	TMPDIR=$tmp/$name MALLOC_PERTURB_=$((RANDOM % 255 + 1)) \
		ASAN_OPTIONS=log_path=$tmp/sanitizer/$name:detect_stack_use_after_return=1:strict_string_checks=1 \
		UBSAN_OPTIONS=log_path=$tmp/sanitizer/$name:halt_on_error=1:print_stacktrace=1 \
		TSAN_OPTIONS=log_path=$tmp/sanitizer/$name:halt_on_error=1:second_deadlock_stack=1 \
		limited meson test -C "$dir" $rebuild --num-processes $jobs_n --timeout-multiplier 2 "$@" 2>&1 |
		tee "$tmp/$name.log" | sed -nE 's/^ *([0-9]+\/[0-9]+ .*)/   \1/p'
	rc=${PIPESTATUS[0]}
	if [ -s "$log" ]; then
		if python3 scripts/lib/test_results.py "$log" "$tmp/counts"; then
			set -- $(cat "$tmp/counts")
			passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
			say "$name: $1 passed, $2 failed, $3 skipped"
			[ "$rc" = 0 ] || [ "$2" -gt 0 ] || fail "$name: meson test ended with $rc"
		else
			fail "$name: no results"
		fi
	elif [ "$rc" != 0 ]; then
		tail -20 "$tmp/$name.log"
		fail "$name: meson test ended with $rc"
	else
		say "$name: no tests"
	fi
	[ "$rc" != 124 ] || fail "$name: the time limit of $limit_s s is over"
	for report in "$tmp/sanitizer/$name".*; do
		[ -e "$report" ] || continue
		fail "$name: sanitizer report"
		head -60 "$report" | sed 's/^/    /'
		mv "$report" "$tmp/sanitizer/told.${report##*/}"
	done
	if [ -n "$(mounts_left)" ]; then
		fail "$name: mounts left behind: $(mounts_left | tr '\n' ' ')"
	fi
}

stage_check() {
	check "format" scripts/check_format.sh
	check "the tree" scripts/check_tree.sh
}

stage_asan() {
	build asan -Db_sanitize=address,undefined -Doptimization=1 -Ddebug=true &&
		run asan --no-suite release --no-suite minute
}

stage_clang() {
	CC=clang-14 build clang --buildtype=release -Dfuse=system && run clang --suite unit --suite smoke
	# What is for the bundled one alone is seen by clang, too.
	CC=clang-14 build clang-bundled --buildtype=release -Dfuse=bundled
}

stage_release() {
	build release --buildtype=release && run release --suite unit --suite smoke --suite release
}

stage_tsan() {
	build tsan -Db_sanitize=thread -Doptimization=1 -Ddebug=true && run tsan --suite stress
}

if [ $setup = yes ]; then
	say "setup"
	scripts/setup.sh --test </dev/null || exit 1
fi
for stage in $stages; do
	declare -F "stage_$stage" >/dev/null || { echo "test.sh: no stage '$stage'" >&2; exit 2; }
	started=$SECONDS
	say "$stage"
	"stage_$stage"
	times="$times $stage $((SECONDS - started)) s,"
done
say "times:${times%,}; in all $SECONDS s"
[ $SECONDS -le "$budget_s" ] || say "over the budget of $budget_s s"
line="$passed passed, $failed failed"
[ $skipped = 0 ] || line="$line, $skipped skipped"
echo "$line"
[ $failed = 0 ] && [ $passed -gt 0 ]
