package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmctl/vmctl/hypervisor/guestagent"
)

// usersWhileRunning is why a user of a guest that does not run is not changed.
const usersWhileRunning = "users of the guest are changed while the VM runs"

func newSetPasswordCommand(a *app) *cobra.Command {
	var hashed bool
	cmd := &cobra.Command{
		Use:   "set-password NAME USER",
		Short: "Set the password of a user in the guest, by its agent",
		Long: `Set the password of a user in the guest, by its agent. It is the first line of
stdin, or asked for on a terminal; it is in no argument, file or log.`,
		Example: `  vmctl set-password web root
  openssl passwd -6 -stdin <secret | vmctl set-password --hashed web alice`,
		GroupID:           groupReach,
		Args:              nameAndUser,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSetPassword(cmd.Context(), a, args[0], args[1], hashed)
		},
	}
	cmd.Flags().BoolVar(&hashed, "hashed", false, "what comes is a hash of crypt(5)")
	return cmd
}

func nameAndUser(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageError{fmt.Errorf("want the name of a VM and a user, got %d arguments", len(args))}
	}
	return nil
}

// maxPassword bounds a password, in bytes.
const maxPassword = 4096

func runSetPassword(ctx context.Context, a *app, name, user string, hashed bool) error {
	channel, err := a.agent(ctx, name, usersWhileRunning)
	if err != nil {
		return fmt.Errorf("set-password in %s: %w", name, err)
	}
	defer channel.Release()
	password, err := a.readPassword(fmt.Sprintf("New password of %s in %s: ", user, name))
	if err != nil {
		return err
	}
	err = a.noting("set-password", "", name, func() error { return channel.SetPassword(ctx, user, password, hashed) })
	if err != nil {
		return agentError(fmt.Sprintf("set-password of %s in %s", user, name), err)
	}
	a.ui.printf("%s: password of %s set", name, user)
	return nil
}

// readPassword asks for a password twice on a terminal, else it is the first line
// of stdin.
func (a *app) readPassword(prompt string) (string, error) {
	if isTerminal(a.ui.in) {
		var typed [2]string
		for i, text := range []string{prompt, "Again: "} {
			fmt.Fprint(a.ui.err, text)
			b, err := term.ReadPassword(int(a.ui.in.Fd()))
			fmt.Fprintln(a.ui.err)
			if err != nil {
				return "", err
			}
			typed[i] = string(b)
		}
		if typed[0] != typed[1] {
			return "", errors.New("the two are not the same")
		}
		return typed[0], checkPassword(typed[0])
	}
	line, err := bufio.NewReader(io.LimitReader(a.ui.in, maxPassword+2)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	password := strings.TrimSuffix(line, "\n")
	return password, checkPassword(password)
}

// checkPassword does not repeat what it refuses.
func checkPassword(password string) error {
	switch {
	case password == "":
		return usageError{errors.New("want a password on the first line of stdin, got none")}
	case len(password) > maxPassword:
		return usageError{fmt.Errorf("want a password of at most %d bytes", maxPassword)}
	}
	return nil
}

func newSSHKeyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh-key",
		Short: "Public keys by which users of the guest may log in, by its agent",
		Example: `  vmctl ssh-key add web alice ~/.ssh/id_ed25519.pub
  vmctl ssh-key list web alice`,
		GroupID: groupReach,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, sub := range []struct {
		name, args, short string
		do                func(context.Context, *guestagent.Channel, string, []string) error
	}{
		{"add", " [FILE]", "Let who has these keys log in", func(ctx context.Context, c *guestagent.Channel, user string, keys []string) error {
			return c.AddSSHKeys(ctx, user, keys)
		}},
		{"remove", " [FILE]", "Take these keys away", func(ctx context.Context, c *guestagent.Channel, user string, keys []string) error {
			return c.RemoveSSHKeys(ctx, user, keys)
		}},
	} {
		cmd.AddCommand(&cobra.Command{
			Use:   sub.name + " NAME USER" + sub.args,
			Short: sub.short,
			Long:  sub.short + `. They are the lines of FILE, or of stdin.`,
			Args: func(cmd *cobra.Command, args []string) error {
				if len(args) == 3 {
					return nil
				}
				return nameAndUser(cmd, args)
			},
			Example:           "  vmctl ssh-key " + sub.name + " web alice ~/.ssh/id_ed25519.pub",
			Annotations:       map[string]string{stdinHere: ""},
			ValidArgsFunction: a.completeName,
			RunE: func(cmd *cobra.Command, args []string) error {
				return runChangeSSHKeys(cmd.Context(), a, "ssh-key "+sub.name, args, sub.do)
			},
		})
	}
	cmd.AddCommand(&cobra.Command{
		Use:               "list NAME USER",
		Short:             "List the keys of a user",
		Args:              nameAndUser,
		Example:           "  vmctl ssh-key list web alice",
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runListSSHKeys(cmd.Context(), a, args[0], args[1])
		},
	})
	return cmd
}

func runChangeSSHKeys(ctx context.Context, a *app, op string, args []string, do func(context.Context, *guestagent.Channel, string, []string) error) error {
	name, user := args[0], args[1]
	from := io.Reader(a.ui.in)
	if len(args) == 3 && args[2] != "-" {
		f, err := os.Open(args[2])
		if err != nil {
			return given(args[2], err)
		}
		defer f.Close()
		from = f
	}
	keys, err := readPublicKeys(from)
	if err != nil {
		return err
	}
	channel, err := a.agent(ctx, name, usersWhileRunning)
	if err != nil {
		return fmt.Errorf("ssh-key in %s: %w", name, err)
	}
	defer channel.Release()
	if err := a.noting(op, "", name, func() error { return do(ctx, channel, user, keys) }); err != nil {
		return agentError(fmt.Sprintf("ssh-key of %s in %s", user, name), err)
	}
	a.ui.printf("%s: %s of %s", name, count(len(keys), "key"), user)
	return nil
}

// maxPublicKeys bounds what is read of public keys, in bytes.
const maxPublicKeys = 256 << 10

// readPublicKeys reads public keys, one a line as in authorized_keys (sshd(8)).
func readPublicKeys(r io.Reader) ([]string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxPublicKeys))
	if err != nil {
		return nil, err
	}
	var keys []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if strings.Contains(line, "PRIVATE KEY") {
			return nil, usageError{errors.New("want public keys, got a private one")}
		}
		keys = append(keys, line)
	}
	if len(keys) == 0 {
		return nil, usageError{errors.New("want public keys, one a line, got none")}
	}
	return keys, nil
}

// shownKeys is vmctl ssh-key list -o json.
type shownKeys struct {
	Name string   `json:"name"`
	User string   `json:"user"`
	Keys []string `json:"keys"`
}

func runListSSHKeys(ctx context.Context, a *app, name, user string) error {
	channel, err := a.agent(ctx, name, usersWhileRunning)
	if err != nil {
		return fmt.Errorf("ssh-key in %s: %w", name, err)
	}
	defer channel.Release()
	keys, err := channel.SSHKeys(ctx, user)
	if err != nil {
		return agentError(fmt.Sprintf("ssh-key of %s in %s", user, name), err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(shownKeys{name, user, append([]string{}, keys...)})
	}
	for _, key := range keys {
		a.ui.printf("%s", printable(key))
	}
	return nil
}
