package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// sshOptions are the flags of vmctl ssh.
type sshOptions struct {
	login string
	print bool
	proxy bool
}

func newSSHCommand(a *app) *cobra.Command {
	var opts sshOptions
	cmd := &cobra.Command{
		Use:   "ssh NAME [-- COMMAND...]",
		Short: "Log in to the guest of a VM by ssh, or run a command there",
		Long: `Log in to the guest of a VM by ssh, or run a command there: by vsock where host and
guest have it, else by an address of the guest, else by a forward to its port 22.

The VM has a key of its own, made at the first use, beside those of yours. The
guest is given it by its agent, where one answers; else put a key of yours into
cloud_init.ssh_keys. The guest's host keys are noted at the first use too, and
have to be those from then on.

vmctl ssh-config prints what ssh, scp, rsync and others need to know of it.`,
		Example: `  vmctl ssh web
  vmctl ssh --login debian web -- journalctl -b -p err
  vmctl ssh --print web`,
		GroupID: groupReach,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("want the name of a VM")}
			}
			return nil
		},
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.proxy {
				return runSSHProxy(cmd.Context(), a, args[0])
			}
			return runSSH(cmd.Context(), a, opts, args[0], args[1:])
		},
	}
	cmd.Flags().StringVarP(&opts.login, "login", "l", "", "log in as this `USER` (default cloud_init.user, else root)")
	cmd.Flags().BoolVar(&opts.print, "print", false, "print the command line of ssh, and do not run it")
	cmd.Flags().BoolVar(&opts.proxy, "proxy", false, "connect stdin and stdout to the guest's ssh server: a ProxyCommand")
	cmd.MarkFlagsMutuallyExclusive("print", "proxy")
	return cmd
}

func newSSHConfigCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-config NAME...",
		Short: "Print what ssh has to know of VMs, for ~/.ssh/config",
		Long: `Print what ssh has to know of VMs, for ~/.ssh/config or ssh -F: then ssh, scp,
sftp, rsync and what else uses ssh reach them by the names NAME.vm.`,
		Example: `  vmctl ssh-config web >>~/.ssh/config
  scp dump.sql web.vm:`,
		GroupID:           groupReach,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSSHConfig(a, args)
		},
	}
}

// sshSettings are ssh's for a machine, as ssh_config(5) has them.
func (a *app) sshSettings(m *config.Machine, name, login string) [][2]string {
	dir := a.sshDir(name)
	proxy := "vmctl ssh --proxy " + name
	if a.user {
		proxy = "vmctl --user ssh --proxy " + name
	}
	if login == "" {
		login = "root"
		if m != nil {
			login = cmp.Or(m.CloudInit.User, login)
		}
	}
	return [][2]string{
		{"ProxyCommand", proxy},
		{"User", login},
		{"IdentityFile", sshPath(filepath.Join(dir, "id_ed25519"))},
		{"UserKnownHostsFile", sshPath(filepath.Join(dir, "known_hosts"))},
		{"HostKeyAlias", name},
		{"StrictHostKeyChecking", "accept-new"},
		{"LogLevel", "ERROR"},
	}
}

// sshPath is a path as ssh_config(5) has it where it expands tokens, and splits
// what is not quoted.
func sshPath(path string) string {
	return `"` + strings.NewReplacer("%", "%%", `\`, `\\`, `"`, `\"`).Replace(path) + `"`
}

func runSSH(ctx context.Context, a *app, opts sshOptions, name string, command []string) error {
	if a.ui.format == jsonFormat {
		return usageError{errors.New("ssh has no JSON to say")}
	}
	if strings.HasPrefix(opts.login, "-") {
		return usageError{fmt.Errorf("--login: want a user, got %q", opts.login)}
	}
	l, err := a.lookUp(ctx, name, "the guest is reached while the VM runs", running, starting, saving)
	if err != nil {
		return fmt.Errorf("ssh to %s: %w", name, err)
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return withHint(err, "vmctl ssh needs ssh: apt install openssh-client")
	}
	settings := a.sshSettings(l.machine(), name, opts.login)
	argv := []string{"ssh"}
	for _, s := range settings {
		argv = append(argv, "-o", s[0]+"="+s[1])
	}
	argv = append(argv, "--", name+".vm")
	argv = append(argv, command...)
	if opts.print {
		quoted := make([]string, len(argv))
		for i, arg := range argv {
			quoted[i] = shellQuote(arg)
		}
		a.ui.printf("%s", strings.Join(quoted, " "))
		return nil
	}
	key, err := a.ownKey(ctx, name)
	if err != nil {
		return fmt.Errorf("ssh to %s: its own key: %w", name, err)
	}
	a.giveKey(ctx, l, settings[1][1], key)
	return fmt.Errorf("running %s: %w", ssh, syscall.Exec(ssh, argv, os.Environ()))
}

func runSSHConfig(a *app, names []string) error {
	if a.ui.format == jsonFormat {
		return usageError{errors.New("ssh does not read JSON")}
	}
	for _, name := range names {
		vm, err := a.find(name)
		if err != nil {
			return err
		}
		a.ui.printf("Host %s.vm", name)
		for _, s := range a.sshSettings(vm.Machine, name, "") {
			a.ui.printf("  %s %s", s[0], s[1])
		}
	}
	return nil
}

// runSSHProxy is what ssh calls to connect.
func runSSHProxy(ctx context.Context, a *app, name string) error {
	l, err := a.lookUp(ctx, name, "the guest is reached while the VM runs", running, starting, saving)
	if err != nil {
		return fmt.Errorf("ssh to %s: %w", name, err)
	}
	conn, first, _, err := a.dialSSH(ctx, l)
	if err != nil {
		return fmt.Errorf("ssh to %s: %w", name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		// The end of what ssh has to say is the end of it.
		_, _ = io.Copy(conn, a.ui.in)
		conn.Close()
	}()
	// An error of either side is for ssh to tell of.
	_, _ = io.Copy(a.ui.out, first)
	return nil
}

// ownKey is the public half of the key that a machine has of its own, made at
// the first use.
func (a *app) ownKey(ctx context.Context, name string) (string, error) {
	dir := a.sshDir(name)
	private := filepath.Join(dir, "id_ed25519")
	public, err := os.ReadFile(private + ".pub")
	if err == nil {
		return strings.TrimSpace(string(public)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// Whole or not at all, and the first of two at once has made it: the public
	// half comes last.
	temp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	made := filepath.Join(temp, "key")
	out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vmctl "+name, "-f", made).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ssh-keygen: %w: %s", err, strings.TrimSpace(string(out)))
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if public, err := os.ReadFile(private + ".pub"); err == nil {
		return strings.TrimSpace(string(public)), nil
	}
	if err := errors.Join(os.Rename(made, private), os.Rename(made+".pub", private+".pub")); err != nil {
		return "", err
	}
	public, err = os.ReadFile(private + ".pub")
	return strings.TrimSpace(string(public)), err
}

// lockDir lets one at a time work in a directory.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := access.Flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

// giveKey has the guest's agent let the key in, where one answers: without, the
// guest may know it already, or let another one in.
func (a *app) giveKey(ctx context.Context, l look, user, key string) {
	if listens, err := a.agentListens(ctx, l); err != nil || !listens || l.machine() == nil || !l.machine().GuestAgent.Enabled {
		return
	}
	channel, err := a.agentOf(ctx, l)
	if err == nil {
		defer channel.Release()
		bounded, cancel := context.WithTimeout(ctx, agentHello)
		defer cancel()
		err = channel.AddSSHKeys(bounded, user, []string{key})
	}
	if err != nil {
		a.ui.warnf("%s: the guest agent did not take the VM's own key: %v", l.vm.Name, err)
	}
}
