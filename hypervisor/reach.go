package hypervisor

import (
	"context"
	"image"
	"io"
	"time"
)

// KeySender is a Control that can press keys.
type KeySender interface {
	// SendKeys presses the named keys together, e.g. "ctrl", "alt", "delete",
	// and lets go of them after hold, or 0 for the hypervisor's own idea of it.
	// It returns before that.
	SendKeys(ctx context.Context, hold time.Duration, keys ...string) error
}

// Keyboard is a Hypervisor whose Control is a [KeySender].
type Keyboard interface {
	// Keys are the names of the keys that there are.
	Keys() []string
}

// DisplayControl is a Control of a machine with a graphical display.
type DisplayControl interface {
	// Authorize replaces the password of the display, which is of a kind that
	// config.Display has; it lets viewers in for as long as valid, in whole
	// seconds. Who is in stays.
	Authorize(ctx context.Context, kind, password string, valid time.Duration) error
	// Screenshot is what a monitor of the display shows, the first being 0.
	Screenshot(ctx context.Context, head int) (image.Image, error)
}

// Commander is a Control that takes the hypervisor's own commands.
type Commander interface {
	// Human runs a command in the notation for people, and returns what it
	// prints.
	Human(ctx context.Context, command string) (string, error)
	// Native runs a command in the notation for programs, and returns its
	// result in that.
	Native(ctx context.Context, command string) (string, error)
}

// Converser is a Hypervisor whose own protocol can be spoken as it is.
type Converser interface {
	// Converse sends the commands from in to the hypervisor at socket, and
	// writes all that it sends to out, until in has ended and each command is
	// answered, or the hypervisor ends. It may read from in once more then. The
	// error is context.DeadlineExceeded where somebody else has the socket.
	Converse(ctx context.Context, socket string, in io.Reader, out io.Writer) error
}
