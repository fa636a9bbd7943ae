# shellcheck shell=bash
# Sourced by the scripts of this folder: what they need from the host they run
# on, which is a Debian 12 or 13 where nothing but git, make and Go is there.

set -euo pipefail
shopt -s inherit_errexit

# A shell of root that was not a login shell may lack the second half.
PATH=$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
export PATH LC_ALL=C.UTF-8 CGO_ENABLED=0

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Roots, images and kernels are kept here, outside of the checkout, each below
# a name that holds a hash of what it was made from.
cache=${VMCTL_TEST_CACHE:-/var/cache/vmctl-test}

note() { printf '%s\n' "==> $*" >&2; }

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

need_root() { [ "$(id -u)" = 0 ] || die "this has to run as root"; }

# need_packages PACKAGE… installs those that are missing. The lists of packages
# are fetched only where they turn out to be missing or too old. Two runs at once
# take turns.
need_packages() (
	missing=()
	for package; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	need_root
	exec 9>/run/lock/vmctl-test.lock
	flock 9
	note "installing Debian packages: ${missing[*]}"
	# An image of a container comes without any lists.
	compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null || apt_update
	quietly apt_install "${missing[@]}" || {
		apt_update
		quietly apt_install "${missing[@]}"
	}
)

apt_install() {
	DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
}

# quietly COMMAND… shows what it prints only where it fails.
quietly() {
	local log
	log=$(mktemp)
	"$@" >"$log" 2>&1 || {
		cat "$log" >&2
		rm "$log"
		return 1
	}
	rm "$log"
}

# One source of somebody else's that does not answer must not stop us.
apt_update() { quietly apt-get -q update || note "apt-get update had errors"; }

suite_of_host() (
	# shellcheck disable=SC1091
	. /etc/os-release
	echo "${VERSION_CODENAME:-unknown}"
)

# hash FILE… or hash < TEXT: a short name for content.
hash() { cat "$@" | sha256sum | cut -c 1-12; }

# cached DIRECTORY COMMAND… has COMMAND fill a new directory, whose name it is
# given as its last argument, and then moves it to DIRECTORY, unless that is
# there already. Two runs at once do not disturb each other, and an interrupted
# one leaves nothing that looks finished.
cached() {
	local dir=$1 aside
	shift
	mkdir -p "$cache"
	(
		flock 9
		if [ ! -d "$dir" ]; then
			rm -rf "$dir".new.*
			aside=$(mktemp -d "$dir.new.XXXXXX")
			chmod 755 "$aside"
			"$@" "$aside"
			mv -T "$aside" "$dir"
		fi
		touch "$dir"
	) 9>"$dir.lock"
}
