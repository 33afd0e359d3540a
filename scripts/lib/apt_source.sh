# Fetching Debian source packages without touching the system's apt configuration (sourced).
#
# apt_source_mirror
#	Prints the address that this system's own apt sources name for Debian, or fails.
# apt_source_fetch PACKAGE FILE DIR SUITE...
#	Puts the files of source package PACKAGE into DIR: from the first SUITE of that mirror whose
#	PACKAGE has a file that matches the shell pattern FILE. apt checks the archive's signature
#	(Debian's keyring) and every checksum down to the file. Says nothing; the log of the last
#	try is DIR/apt.log. Needs neither root nor a deb-src line.

apt_source_mirror() {
	local codename
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# apt itself parses its sources, one-line and deb822 alike.
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
		awk -v codename="$codename" '
			$3 == "main" && ($2 == codename ||
			    $2 ~ /^(oldstable|stable|testing|unstable|sid)$/) {
				print $1
				found = 1
				exit
			}
			END { exit !found }'
}

# apt_source_tool DIR TOOL ARGS...: apt-get or apt-cache under the private configuration in DIR. A
# mirror that lags behind is good enough, since what we take is a fixed release: so the signature
# must be right but may have passed its Valid-Until.
apt_source_tool() {
	local dir=$1 tool=$2
	shift 2
	timeout -k 5 240 "$tool" -q \
		-o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State="$dir/state" -o Dir::State::status=/dev/null -o Dir::Cache="$dir/cache" \
		-o Acquire::Check-Valid-Until=false -o Acquire::Languages=none \
		-o Acquire::http::Timeout=20 -o Acquire::Retries=2 \
		-o APT::Sandbox::User=root "$@"
}

apt_source_fetch() {
	local package=$1 file=$2 dir=$3 mirror keyring suite version tmp signed_by= rc=1
	shift 3
	mirror=$(apt_source_mirror) || return 1
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -r "$keyring" ] && signed_by=" [signed-by=$keyring]"
	tmp=$(mktemp -d) || return 1
	for suite; do
		rm -rf "$tmp"/*
		mkdir -p "$tmp/state/lists/partial" "$tmp/cache/archives/partial" "$tmp/out"
		echo "deb-src$signed_by $mirror $suite main" >"$tmp/sources.list"
		apt_source_tool "$tmp" apt-get update >"$dir/apt.log" 2>&1 || continue
		for version in $(apt_source_tool "$tmp" apt-cache showsrc --only-source "$package" \
			2>>"$dir/apt.log" | apt_source_versions "$file"); do
			(cd "$tmp/out" && apt_source_tool "$tmp" apt-get source --download-only \
				"$package=$version") >>"$dir/apt.log" 2>&1 || continue
			mv "$tmp"/out/* "$dir/" && rc=0 && break 2
		done
	done
	rm -rf "$tmp"
	return $rc
}

# Filter of `apt-cache showsrc`: the versions that have a file that matches the pattern.
apt_source_versions() {
	local pattern=$1 line version=
	while read -r line; do
		case $line in
		"") version= ;;
		"Version: "*) version=${line#Version: } ;;
		*" "$pattern) [ -z "$version" ] || echo "$version" ;;
		esac
	done | sort -Vru
}
