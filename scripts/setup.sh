#!/bin/bash
# usage: setup.sh [--build | --test | --bench]
# Installs what building (--build), building and testing (--test, the default) or these and the
# benchmark (--bench) need on Debian 12, with apt-get alone, as root or through sudo; fetches the
# pinned libfuse and the SigV4 test vectors into subprojects/packagecache. Quiet and quick when nothing
# is to do. Debian's nginx (--bench) also starts a server of its own on port 80, which nothing here needs.
# Exit status: 0 all there, 1 something needed is missing. What only some tests or rows of the benchmark
# need (the S3 server, nginx, the peers) may be missing: one line says so, and those are skipped.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
what=test
for arg; do
	case $arg in
	--build) what=build ;;
	--test) what=test ;;
	--bench) what=bench ;;
	-h | --help)
		sed -n '2,9s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	*)
		echo "setup.sh: unknown argument '$arg'; usage: setup.sh [--build | --test | --bench]" >&2
		exit 2
		;;
	esac
done

build_packages="gcc libc6-dev meson ninja-build pkg-config patch python3 ca-certificates
	libfuse3-dev fuse3 libcurl4-openssl-dev libssl-dev libsqlite3-dev liblz4-dev libjansson-dev
	libexpat1-dev liburing-dev libnuma-dev"
test_packages="clang-14 clang-format-14 libclang-rt-14-dev ccache libcriterion-dev gcovr git curl
	sqlite3 attr faketime openssl procps psmisc strace"
server_packages="ceph-mon ceph-osd radosgw ceph-common"
# Each may be missing.
bench_packages="nginx s3fs rclone restic squashfs-tools squashfuse"

# Prints those of its arguments that are not installed.
missing() {
	local package
	for package; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			echo "$package"
	done
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		echo "setup.sh: needs root or sudo to install packages" >&2
		return 1
	fi
}

apt_updated=
install() {
	[ $# -gt 0 ] || return 0
	echo "setup: installing $*"
	if [ -z "$apt_updated" ]; then
		# A broken third-party source must not end this; the install tells.
		as_root apt-get -qq update >/dev/null 2>&1 || true
		apt_updated=1
	fi
	local log rc=0
	log=$(mktemp)
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 \
		install --no-install-recommends "$@" </dev/null >"$log" 2>&1 || rc=1
	[ $rc = 0 ] || tail -5 "$log" >&2
	rm -f "$log"
	return $rc
}

packages=$build_packages
[ $what = build ] || packages="$packages $test_packages"
if ! install $(missing $packages); then
	echo "setup: missing packages: $(missing $packages | tr '\n' ' ')" >&2
	exit 1
fi
"$root/scripts/fetch_fuse.sh" || true
if [ $what != build ]; then
	install $(missing $server_packages) ||
		echo "setup: Ceph radosgw cannot be installed; tests on a real S3 server are skipped" >&2
	"$root/scripts/fetch_vectors.sh" || true
fi
if [ $what = bench ]; then
	for package in $(missing $bench_packages); do
		install "$package" ||
			echo "setup: $package cannot be installed; what needs it is not measured" >&2
	done
fi
