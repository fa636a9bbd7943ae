# shellcheck shell=bash
# Sourced by e2e/run, after container.sh: gives a container cloud-hypervisor and
# KVM of the host. They are in no other container: with a /dev/kvm in it, QEMU's
# machines would not run by the emulation that their tests count on.

# cloud_hypervisor_missing says why cloud-hypervisor cannot run on this host, and
# nothing where it can.
cloud_hypervisor_missing() {
	if ! command -v cloud-hypervisor >/dev/null; then
		echo "this host has no cloud-hypervisor in PATH (packaging/README.md says where there is one)"
	elif [ ! -e /dev/kvm ]; then
		echo "this host has no /dev/kvm, and cloud-hypervisor runs by KVM alone"
	elif ! (: <>/dev/kvm) 2>/dev/null; then
		echo "/dev/kvm of this host does not open"
	fi
}

# install_cloud_hypervisor ROOT: a copy, so that nothing is bound that a link may
# lead out of.
install_cloud_hypervisor() {
	install -D -m 755 "$(command -v cloud-hypervisor)" "$1/usr/bin/cloud-hypervisor"
}

# make_kvm_node makes /dev/kvm in the running container, as udev would: mode and
# group of the host's own may be others. The device is the host's.
make_kvm_node() {
	inside mknod -m 660 /dev/kvm c 10 232
	inside chgrp kvm /dev/kvm
}

# cloud_hypervisor_unfit says why what was built for the host does not run in the
# container, and nothing where it does: it may be linked to libraries that are not
# there, or to newer ones.
cloud_hypervisor_unfit() {
	local said
	said=$(inside cloud-hypervisor --version 2>&1) ||
		echo "the host's $(command -v cloud-hypervisor) does not run on Debian $suite (a static one would): ${said//$'\n'/; }"
}
