# shellcheck shell=bash
# Sourced by e2e/run and demo/run, after host.sh: a throw-away Debian with a
# running systemd, without a virtual machine around it, in which vmctl is
# installed. The host's own systemd, where it has one, knows nothing of it.

# The packages of a root: what vmctl needs to run machines, and what its tests
# look at them with. libvirglrenderer and the like are only recommended.
root_packages=(
	systemd systemd-sysv dbus udev systemd-container libnss-systemd polkitd
	qemu-system-x86 qemu-utils seabios ovmf
	iproute2 nftables iptables dnsmasq-base systemd-resolved passt vde2
	swtpm swtpm-tools acl attr procps kmod psmisc strace
	openssh-client openssh-server socat jq less
)

# make_root SUITE DIRECTORY
make_root() {
	local suite=$1 dir=$2 packages=("${root_packages[@]}")
	# Quadlet, to compare the generator with; Debian 12's podman is too old. Its
	# QEMU brings virtiofsd and SPICE along.
	[ "$suite" = bookworm ] || packages+=(podman virtiofsd qemu-system-modules-spice)
	note "making a root of Debian $suite"
	mmdebstrap --quiet --variant=apt --include="$(IFS=,; echo "${packages[*]}")" "$suite" "$dir" >&2
	# Each copy is a machine of its own.
	: >"$dir/etc/machine-id"
	echo vmctl-e2e >"$dir/etc/hostname"
	# What a first boot would do, and nothing in the tests needs.
	rm -f "$dir/etc/resolv.conf" "$dir/var/lib/systemd/random-seed"
	ln -sf /dev/null "$dir/etc/systemd/system/apt-daily.timer"
	ln -sf /dev/null "$dir/etc/systemd/system/apt-daily-upgrade.timer"
	ln -sf /dev/null "$dir/etc/systemd/system/e2scrub_all.timer"
	# The test of -H has an sshd of its own.
	ln -sf /dev/null "$dir/etc/systemd/system/ssh.service"
}

# root_of SUITE prints the directory of its root, made where it is missing.
root_of() {
	local dir
	need_packages mmdebstrap systemd-container
	dir=$cache/root-$1-$( (declare -f make_root; echo "${root_packages[@]}") | hash)
	cached "$dir" make_root "$1"
	echo "$dir"
}

# install_vmctl ROOT: what the packages of a distribution would do.
install_vmctl() {
	flock "$repository/Makefile" make -s -C "$repository" install DESTDIR="$1" >&2
	chroot "$1" systemd-sysusers >&2
	chroot "$1" journalctl --update-catalog
	chroot "$1" systemctl preset vms.target vmctl-api.socket vmctl-api-viewers.socket 2>/dev/null
}

# boot_container ROOT OPTION… sets container (process 1 of it, seen from here)
# and nspawn (the process that keeps it, reboots included), and returns once it
# is up.
boot_container() {
	local root=$1 cgroup=()
	shift
	# Where systemd runs the host, nspawn asks it for a cgroup; elsewhere it
	# takes the one that it is started in.
	[ -d /run/systemd/system ] || cgroup=(--keep-unit)
	# A host with cgroup v1 has cgroup v2 somewhere, and systemd wants that.
	# bpf(2) is how systemd closes devices and addresses to a unit; nspawn
	# refuses it otherwise.
	# Without a unit of its own, it leaves a reboot to whoever started it, by
	# this exit status.
	(
		[ ${#cgroup[@]} = 0 ] || in_cgroups join_cgroup "vmctl-$$" "$BASHPID"
		# shellcheck disable=SC2016
		UNIFIED_CGROUP_HIERARCHY=yes exec setsid bash -c 'until systemd-nspawn "$@"; [ $? != 133 ]; do :; done' nspawn \
			--quiet --directory="$root" --machine="vmctl-$$" --register=no "${cgroup[@]}" --private-network --bind=/dev/net/tun \
			--capability=CAP_NET_ADMIN,CAP_SYS_ADMIN --system-call-filter=bpf "$@" --boot
	) >"$root.console" 2>&1 </dev/null &
	nspawn=$!
	wait_for_container || {
		cat "$root.console" >&2
		die "the container did not come up"
	}
}

# in_cgroups FUNCTION ARGUMENT… calls it where the host's tree of cgroup v2, which
# may be mounted nowhere, is the working directory.
in_cgroups() {
	# shellcheck disable=SC2016
	unshare --mount bash -c "$(declare -f "$1")"'
		mount -t cgroup2 cgroup2 /sys/fs/cgroup && cd /sys/fs/cgroup && "$@"' cgroups "$@"
}

# join_cgroup NAME PID: each container has a cgroup of its own. In one for two,
# each systemd would take away what the other has just made.
join_cgroup() { mkdir -p "$1" && echo "$2" >"$1/cgroup.procs"; }

# remove_cgroup NAME
remove_cgroup() { [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +; }

# find_container sets container, "" where there is none just now.
find_container() {
	local pid=$nspawn
	container=
	# The container is the child of systemd-nspawn, which is a child of ours.
	for _ in 1 2; do
		[ -d "/proc/$nspawn" ] || return
		pid=$(tr ' ' '\n' <"/proc/$pid/task/$pid/children" 2>/dev/null | head -n 1) || return 0
		[ -n "$pid" ] || return 0
	done
	container=$pid
}

# wait_for_container waits until the container of nspawn is up.
wait_for_container() {
	local state=
	for _ in $(seq 300); do
		find_container || return
		[ -z "$container" ] || state=$(inside systemctl is-system-running 2>/dev/null) || true
		case $state in
		running) return ;;
		degraded)
			note "in the container, these units failed:"
			inside systemctl --no-legend --plain --failed >&2
			return
			;;
		esac
		sleep 0.2
	done
	return 1
}

# reboot_container has the container of nspawn shut down and boot again.
reboot_container() {
	find_container
	local before=$container
	inside systemctl reboot
	for _ in $(seq 1500); do
		[ -d "/proc/$before" ] || break
		sleep 0.2
	done
	[ ! -d "/proc/$before" ] || die "the container did not shut down"
	wait_for_container || die "the container did not come up again"
}

# inside COMMAND… runs it in the container.
inside() (
	# In its cgroup too, so that systemd there can tell whose process it is.
	if [ ! -d /run/systemd/system ]; then
		group=$(sed -n 's,^0::/\(.*\)/init.scope$,\1,p' "/proc/$container/cgroup")
		[ -z "$group" ] || in_cgroups join_cgroup "$group/inside" "$BASHPID"
	fi
	exec nsenter --target="$container" --mount --uts --ipc --net --pid --cgroup --root -- \
		env -i -C / PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
		TERM="${TERM:-dumb}" SYSTEMD_PAGER= "$@"
)

# end_container ends it, whatever it does.
end_container() {
	[ -n "${nspawn:-}" ] || return 0
	find_container || true
	inside systemctl poweroff >/dev/null 2>&1 || true
	for _ in $(seq 150); do
		[ -d "/proc/$nspawn" ] || break
		sleep 0.2
	done
	# Killing its process 1 ends everything in it.
	if [ -d "/proc/$nspawn" ]; then
		note "the container did not power off, killing it"
		[ -z "${container:-}" ] || kill -KILL "$container" 2>/dev/null || true
		# The process that starts it again goes before systemd-nspawn does.
		local keeper=$nspawn children
		children=$(cat "/proc/$keeper/task/$keeper/children" 2>/dev/null) || true
		# shellcheck disable=SC2086 # a list of numbers
		kill -KILL "$keeper" $children 2>/dev/null || true
	fi
	wait "$nspawn" 2>/dev/null || true
	nspawn=
	[ -d /run/systemd/system ] || in_cgroups remove_cgroup "vmctl-$$" 2>/dev/null || true
}
