package netsetup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// forwarding lets packets through between the network and the rest. For IPv4
// each interface that they come in by has to allow it, so the uplink does as
// well; for IPv6 the host as a whole, whose interfaces would then no longer
// learn their addresses and routes from routers (ip-sysctl.rst of the kernel,
// accept_ra): those that did go on to.
func forwarding(v4, v6 bool) error {
	if v4 {
		if err := setIfZero("/proc/sys/net/ipv4/ip_forward"); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	const all = "/proc/sys/net/ipv6/conf/all/forwarding"
	if on, err := isSet(all); err != nil || on {
		return ignoreMissing(err)
	}
	learning, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, file := range learning {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == "1" {
			if err := os.WriteFile(file, []byte("2"), 0); err != nil {
				return fmt.Errorf("keep accepting router advertisements: %w", err)
			}
		}
	}
	return setIfZero(all)
}

// localnet lets packets with a loopback address out and in by a bridge, as
// forwards on 127.0.0.1 need (route_localnet, ip-sysctl.rst). The network's
// filter keeps guests from using it.
func localnet(bridge string) error {
	return setIfZero(filepath.Join("/proc/sys/net/ipv4/conf", bridge, "route_localnet"))
}

func isSet(file string) (bool, error) {
	b, err := os.ReadFile(file)
	return strings.TrimSpace(string(b)) != "0", err
}

func setIfZero(file string) error {
	if on, err := isSet(file); err != nil || on {
		return ignoreMissing(err)
	}
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	return nil
}

// ignoreMissing is for a kernel without the protocol.
func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
