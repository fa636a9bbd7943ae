# shellcheck shell=bash
# Sourced by e2e/run, after container.sh: a root of container.sh's as a machine of
# QEMU's. Its kernel is its own, and so it has what a container may not be given:
# the controllers of cgroup v2.

# machine_unit has a machine run a command at its boot, with what it prints on the
# second serial port, the exit status last, and power off after it.
machine_unit() {
	cat <<-END
		[Unit]
		After=multi-user.target
		SuccessAction=poweroff
		FailureAction=poweroff

		[Service]
		Type=oneshot
		ExecStart=$*
		ExecStopPost=/bin/sh -c 'echo "exit status \$EXIT_STATUS"'
		StandardOutput=tty
		StandardError=tty
		TTYPath=/dev/ttyS1
		Environment=HOME=/root LC_ALL=C.UTF-8 SYSTEMD_PAGER=
		TimeoutStartSec=infinity

		[Install]
		WantedBy=default.target
	END
}

# in_machine ROOT COMMAND… boots a root as a machine that runs the command; ends as
# that does. What the machine itself says is in ROOT.console.
in_machine() {
	local root=$1 status debian
	local accel=(-accel tcg)
	shift
	debian=$("$repository/packaging/guest/image") # its kernel, and an initrd that has virtio_blk and ext4
	machine_unit "$@" >"$root/etc/systemd/system/vmctl-e2e.service"
	chroot "$root" systemctl enable vmctl-e2e.service 2>/dev/null
	# As large as what is in it, and what tests write.
	truncate -s $(($(du -sm "$root" | cut -f 1) * 5 / 4 + 512))M "$root.img"
	mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1,root_owner=0:0 -d "$root" "$root.img"
	# A host may have a KVM on which no ordinary kernel runs.
	! grep -qwE 'vmx|svm' /proc/cpuinfo || accel=(-accel kvm "${accel[@]}")
	# One CPU: emulated ones that run at once see code of the kernel half changed by
	# another, and it panics (QEMU 7.2). A model without what is slow to emulate.
	qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35 "${accel[@]}" -cpu Nehalem -m 2G \
		-kernel "$debian/vmlinuz" -initrd "$debian/initrd" -append "root=/dev/vda rw console=ttyS0 no_timer_check panic=-1" \
		-drive "file=$root.img,format=raw,if=virtio,cache=unsafe" -device virtio-rng-pci \
		-serial "file:$root.console" -serial stdio </dev/null | tr -d '\r' | tee "$root.said" | grep -v '^exit status '
	status=$(sed -n 's/^exit status //p' "$root.said")
	[ -n "$status" ] || {
		tail -n 50 "$root.console" >&2
		die "the machine did not say how its command ended"
	}
	return "$status"
}
