#!/bin/bash
# usage: soak.sh [--minutes N] [--seed N] [--only NAME]... [--again] [--build DIR] [--list]
# Runs the end-to-end tests with numbers that are too large for CI, in a release build, one after the
# other, and closes with a table of figures. What has passed with the same seed and binary is not run
# again (unless --again), so that an interrupted soak goes on where it was.
#
#	--minutes N	time for all: those that are left share what is left, and stop early and well. Without it each
#			takes as long as it wants, of the minutes that --list shows at most
#	--seed N	of what is drawn at random (1); the trees' seeds are 1 to 200
#	--only NAME	only this one; may be given several times
#	--build DIR	a build directory (build-test/soak, built when it is not there)
#
# Logs and results lie in DIR/soak. scale_10m needs 30 GB and 10,000,000 inodes in $TMPDIR. Exit status 0
# when nothing failed and all was run whole; what stopped early because of the time has "passed in part" and
# is run again.
set -u
cd "$(dirname "$0")/.." || exit 1
minutes=
seed=1
only=
again=no
build=build-test/soak
programs=tests/integration

# name | minutes at most | command
plan() {
	cat <<END
bad_input	10	bad_input.py
help_tables	5	help_tables.py
mount_helper	10	mount_helper.py
big_shapes	20	big_shapes.py --entries 300000
dedup	30	dedup.py --files 50000 --bytes 2000000000
second_version	30	second_version.py
million	30	million.py
mount_stalls	20	mount_stalls.py --strict
stalls_uring	20	../lib/with_uring.sh env DSFS_MOUNT_OPTIONS=io_uring=on $programs/mount_stalls.py --strict
kernel_modes	60	kernel_modes.py
mount_semantics	10	mount_semantics.py
mount_cache	20	mount_cache.py
scan	30	scan.py --mib 1024 --epochs 8
warm	20	warm.py --files 8000
commit_options	10	commit_options.py
fuse_uring	17	fuse_uring.py
replies	62	replies.py
moving_source	20	moving_source.py --seconds 900
racers	60	racers.py --racers 16 --versions 40
trees_dir	120	trees.py --seeds 1-200 --store dir
trees_s3	120	trees.py --seeds 1-200 --store s3
kills_dir	120	killed_commit.py --cycles 1000 --store dir
kills_s3	60	killed_commit.py --cycles 200 --store s3
flips	240	flips.py --flips 100000
scale_10m	120	scale.py --files 10000000 --strict
END
}

while [ $# -gt 0 ]; do
	case $1 in
	--minutes) minutes=${2:?} && shift ;;
	--seed) seed=${2:?} && shift ;;
	--only) only="$only ${2:?}" && shift ;;
	--build) build=${2:?} && shift ;;
	--again) again=yes ;;
	--list)
		plan
		exit
		;;
	*)
		sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
		exit 2
		;;
	esac
	shift
done
for name in $only; do
	plan | grep -q "^$name	" || { echo "soak.sh: no test '$name' (see --list)" >&2; exit 2; }
done

if [ ! -f "$build/build.ninja" ]; then
	meson setup "$build" --buildtype=release || exit 1
fi
ninja --quiet -C "$build" src/cli/dsfs tests/stress/fuse_uring_stress tests/stress/fs_stress || exit 1
DSFS=$(realpath "$build/src/cli/dsfs")
export DSFS PYTHONDONTWRITEBYTECODE=1
out=$build/soak
mkdir -p "$out"
stamp="$seed $(sha256sum "$DSFS" | cut -c1-16)"

wanted() {
	[ -z "$only" ] || [[ " $only " == *" $1 "* ]]
}

is_done() {
	[ $again = no ] && [ "$(cat "$out/$1.passed" 2>/dev/null)" = "$stamp $2" ]
}

left_n=0
while IFS='	' read -r name limit command; do
	wanted "$name" && ! is_done "$name" "$command" && left_n=$((left_n + 1))
done < <(plan)

child=
trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null; wait; exit 130' HUP INT TERM
failed=0
while IFS='	' read -r name limit command <&3; do
	wanted "$name" || continue
	if is_done "$name" "$command"; then
		echo "== $name: has passed already"
		continue
	fi
	share=$limit
	if [ -n "$minutes" ]; then
		share=$(((minutes * 60 - SECONDS) / left_n / 60 + 1))
		[ $share -lt "$limit" ] || share=$limit
	fi
	left_n=$((left_n - 1))
	if [ -n "$minutes" ] && [ $((minutes * 60 - SECONDS)) -le 0 ]; then
		echo "== $name: no time is left"
		echo "not run" >"$out/$name.verdict"
		failed=1
		continue
	fi
	echo "== $name: $command, $share minutes at most ($(date +%T))"
	started=$SECONDS
	rm -f "$out/$name.passed"
	# Twice the time that it was told to stop after: then it hangs.
	# shellcheck disable=SC2086
	timeout -k 60 $((share * 120 + 300)) "$programs"/$command --seed "$seed" --minutes "$share" \
		>"$out/$name.log" 2>&1 3<&- </dev/null &
	child=$!
	wait $child
	status=$?
	child=
	took=$((SECONDS - started))
	if [ $status = 0 ]; then
		verdict=passed
		if grep -q 'out of time' "$out/$name.log"; then
			verdict="passed in part"
			failed=1
		else
			echo "$stamp $command" >"$out/$name.passed"
		fi
	else
		verdict="FAILED ($status)"
		failed=1
		tail -15 "$out/$name.log" | sed 's/^/    /'
	fi
	printf '%s, %d:%02d min' "$verdict" $((took / 60)) $((took % 60)) >"$out/$name.verdict"
done 3< <(plan)

echo
echo "Figures, seed $seed, $("$DSFS" --version), $(nproc) CPUs, kernel $(uname -r):"
while IFS='	' read -r name limit command; do
	wanted "$name" || continue
	echo
	printf '%-15s %-24s %s\n' "$name" "$(cat "$out/$name.verdict" 2>/dev/null || echo 'not run')" \
		"$command"
	[ ! -f "$out/$name.log" ] || sed -n '2,$p' "$out/$name.log" | grep -v '^  ' | grep -v ': ok, ' |
		tail -12 | cut -c1-200 | sed 's/^/    /'
done < <(plan)
exit $failed
