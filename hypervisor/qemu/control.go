package qemu

import (
	"context"
	"errors"
	"net"

	"github.com/vmctl/vmctl/hypervisor"
)

func (QEMU) Control(ctx context.Context, socket string) (hypervisor.Control, error) {
	return nil, errors.New("not written")
}

func (QEMU) Watch(ctx context.Context, conn net.Conn, on func(hypervisor.Event)) error {
	return errors.New("not written")
}
