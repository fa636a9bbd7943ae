package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

The VM has a key of its own, made at the first use, which the guest is given by its
agent. Your own are tried after it: those in ~/.ssh and, where no agent has taken the
VM's, those of ssh-agent. For a guest without an agent, put one of them into
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
sftp, rsync and what else uses ssh reach them by the names NAME.vm.

With -H they are reached through that host, by the names NAME.vm.HOST, and by your
own keys alone: that of the VM stays there.`,
		Example: `  vmctl ssh-config web >>~/.ssh/config
  scp dump.sql web.vm:`,
		GroupID:           groupReach,
		Annotations:       map[string]string{runsHere: alwaysHere},
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSSHConfig(cmd.Context(), a, args)
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
	settings := [][2]string{
		{"ProxyCommand", proxy},
		{"User", login},
		{"UserKnownHostsFile", sshPath(filepath.Join(dir, "known_hosts"))},
		{"HostKeyAlias", name},
		{"StrictHostKeyChecking", "accept-new"},
		{"LogLevel", "ERROR"},
		{"IdentityFile", sshPath(filepath.Join(dir, "id_ed25519"))},
	}
	for _, name := range ownIdentities() {
		settings = append(settings, [2]string{"IdentityFile", "~/.ssh/" + name})
	}
	return settings
}

// ownIdentities are the keys of who calls that ssh tries by itself, but not where
// it is told of another one.
func ownIdentities() []string {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil
	}
	return slices.DeleteFunc([]string{"id_ed25519", "id_ecdsa", "id_rsa"}, func(name string) bool {
		return !access.IsThere(filepath.Join(home, ".ssh", name))
	})
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
	rest := append([]string{"--", name + ".vm"}, command...)
	if opts.print {
		quoted := []string{"ssh"}
		for _, arg := range append(sshOptionsOf(a.sshSettings(l.machine(), name, opts.login)), rest...) {
			quoted = append(quoted, shellQuote(arg))
		}
		a.ui.printf("%s", strings.Join(quoted, " "))
		return nil
	}
	ssh, options, err := a.prepareSSH(ctx, l, opts.login)
	if err != nil {
		return fmt.Errorf("ssh to %s: %w", name, err)
	}
	argv := append(append([]string{"ssh"}, options...), rest...)
	return fmt.Errorf("running %s: %w", ssh, syscall.Exec(ssh, argv, os.Environ()))
}

// prepareSSH has a machine that runs know its own key, where that can be, and
// returns ssh and its options.
func (a *app) prepareSSH(ctx context.Context, l look, login string) (ssh string, options []string, err error) {
	ssh, err = exec.LookPath("ssh")
	if err != nil {
		return "", nil, withHint(err, "it needs ssh: apt install openssh-client")
	}
	settings := a.sshSettings(l.machine(), l.vm.Name, login)
	key, err := a.ownKey(ctx, l.vm.Name)
	if err != nil {
		return "", nil, fmt.Errorf("its own key: %w", err)
	}
	if a.giveKey(ctx, l, settings[1][1], key) {
		// Servers end a connection after a few keys, and an agent may have many.
		settings = append(settings, [2]string{"IdentitiesOnly", "yes"})
	}
	return ssh, sshOptionsOf(settings), nil
}

// sshOptionsOf are settings on a command line.
func sshOptionsOf(settings [][2]string) []string {
	var options []string
	for _, s := range settings {
		options = append(options, "-o", s[0]+"="+s[1])
	}
	return options
}

func runSSHConfig(ctx context.Context, a *app, names []string) error {
	if a.ui.format == jsonFormat {
		return usageError{errors.New("ssh does not read JSON")}
	}
	if a.host != "" {
		return a.farSSHConfig(ctx, names)
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

// farSSHConfig prints what ssh here has to know of machines on another host. Of what
// that host says, only whom to log in as is taken: ssh runs commands of its
// configuration, here.
func (a *app) farSSHConfig(ctx context.Context, names []string) error {
	f, err := newFar(a.host)
	if err != nil {
		return err
	}
	var said bytes.Buffer
	if err := f.run(ctx, nil, &said, append(append(a.userFlag(), "ssh-config", "--"), names...)); err != nil {
		return err
	}
	// What is before an @ would be the user for ssh, and what follows a percent sign
	// it expands.
	host := f.host[strings.LastIndexByte(f.host, '@')+1:]
	proxy := strings.Join(append([]string{"vmctl", "--host=" + strings.ReplaceAll(shellQuote(a.host), "%", "%%")}, a.userFlag()...), " ")
	for line := range strings.Lines(said.String()) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), " "); key {
		case "Host":
			name := strings.TrimSuffix(value, ".vm")
			if !slices.Contains(names, name) {
				return fmt.Errorf("want %s from vmctl on %s, got %.80q", strings.Join(names, " and "), f.host, value)
			}
			a.ui.printf("Host %s.vm.%s", name, host)
			a.ui.printf("  ProxyCommand %s ssh --proxy %s", proxy, name)
			a.ui.printf("  HostKeyAlias %s.vm.%s", name, host)
			a.ui.printf("  StrictHostKeyChecking accept-new")
			a.ui.printf("  LogLevel ERROR")
		case "User":
			a.ui.printf("  User %s", value)
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
	unlock, err := access.LockFile(filepath.Join(dir, ".lock"), unix.LOCK_EX)
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

// giveKey has the guest's agent let the key in, where one answers, and says whether
// it did: without, the guest may know it already, or let another one in.
func (a *app) giveKey(ctx context.Context, l look, user, key string) bool {
	if listens, err := a.agentListens(ctx, l); err != nil || !listens || l.machine() == nil || !l.machine().GuestAgent.Enabled {
		return false
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
	return err == nil
}
