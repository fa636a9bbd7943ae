package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/cmd/vmctl-api/certificates"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
)

// apiWays are the ways to the API, with the sockets that listen for them.
var apiWays = map[string][]string{
	"unix":     {"vmctl-api.socket", "vmctl-api-viewers.socket"},
	"tls":      {"vmctl-api-tls.socket"},
	"loopback": {"vmctl-api-loopback.socket"},
}

// apiService is what those start.
const apiService = "vmctl-api.service"

func newAPICommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "api",
		Short: "Let programs drive VMs over gRPC: who, and from where",
		Long: `Let programs drive VMs over gRPC (vmctl-api(8)). There are three ways in:

  unix      /run/vmctl/api.sock for root and the group vmctl, and
            /run/vmctl/api-viewers.sock for the group vmctl-viewers, which may look
  tls       a TCP port, by TLS 1.3 with certificates of both sides
  loopback  [::1]:50051 without encryption, for old clients of mvirt-vmm on this host;
            the kernel says which user has called, and who may is as with unix.
            That lets in more than those who log in: see vmctl api enable --help`,
		Example: `  vmctl api status
  vmctl api enable tls --listen 192.0.2.7:50443
  vmctl api cert ops@laptop --out ~/vmctl-api`,
		GroupID: groupParts,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newAPIStatusCommand(a), newAPIEnableCommand(a), newAPIDisableCommand(a), newAPICertCommand(a))
	return cmd
}

// apiWay accepts a way to the API.
func apiWay(_ *cobra.Command, args []string) error {
	if len(args) != 1 || apiWays[args[0]] == nil {
		return usageError{fmt.Errorf("want unix, tls or loopback, got %s", strings.Join(args, " "))}
	}
	return nil
}

var completeWay = cobra.FixedCompletions([]cobra.Completion{"unix", "tls", "loopback"}, cobra.ShellCompDirectiveNoFileComp)

// dialForAPI connects to the system's service manager, whose the API is.
func (a *app) dialForAPI(ctx context.Context) (*bus.Conn, error) {
	if a.user {
		return nil, usageError{errors.New("the API is the system's: want no --user")}
	}
	return a.dial(ctx)
}

func (a *app) certificates() certificates.Dir { return certificates.Dir{Path: a.paths.API} }

func newAPIEnableCommand(a *app) *cobra.Command {
	var listen string
	var plaintext bool
	cmd := &cobra.Command{
		Use:   "enable unix|tls|loopback",
		Short: "Open a way to the API, now and with the host",
		Long: `Open a way to the API, now and with the host. For tls it makes a certificate authority
and the server's certificate, where there are none: an administrator's own may stand in
/etc/vmctl/api/ (ca.pem, server.pem, server.key, crl.pem). Calls that are under way end.

For loopback, --plaintext says that you know what it opens: without encryption or a
secret, every process in the network namespace of this host that runs as root, or as a
member of the groups, is let in. Among them are those of root in containers on the host's
network, and guests whose user-mode network a member's own machine has.`,
		Example:           "  vmctl api enable tls --listen 192.0.2.7:50443\n  vmctl api enable loopback --plaintext",
		Args:              apiWay,
		ValidArgsFunction: completeWay,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkPlaintext(args[0], plaintext); err != nil {
				return usageError{err}
			}
			return runAPIEnable(cmd.Context(), a, args[0], listen)
		},
	}
	cmd.Flags().BoolVar(&plaintext, "plaintext", false, "with loopback: open it although nothing is encrypted")
	cmd.Flags().StringVar(&listen, "listen", "", "`ADDRESS:PORT` to listen on, or a port alone; default: 50443 of all, with loopback [::1]:50051")
	_ = cmd.RegisterFlagCompletionFunc("listen", cobra.NoFileCompletions)
	return cmd
}

func runAPIEnable(ctx context.Context, a *app, way, listen string) error {
	if err := checkListen(way, listen); err != nil {
		return usageError{err}
	}
	conn, err := a.dialForAPI(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if way == "tls" {
		host, names, addresses := ownNames()
		if err := a.certificates().Prepare(host, names, addresses); err != nil {
			return err
		}
	}
	for _, unit := range apiWays[way] {
		if listen != "" {
			text := "# Written by vmctl api enable\n[Socket]\nListenStream=\nListenStream=" + listen + "\n"
			file := filepath.Join(a.paths.EnableDir, unit+".d", "50-vmctl.conf")
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return err
			}
			if err := access.WriteFile(file, []byte(text), 0o644, true); err != nil {
				return err
			}
		}
		if err := conn.Enable(ctx, unit); err != nil {
			return err
		}
	}
	if err := conn.Reload(ctx); err != nil {
		return err
	}
	// systemd gives a service that runs no other sockets.
	if err := conn.Stop(ctx, apiService); err != nil {
		return err
	}
	for _, unit := range apiWays[way] {
		if err := conn.Restart(ctx, unit); err != nil {
			return withHint(err, "systemctl status "+unit+" tells why; another --listen may help")
		}
	}
	a.ui.printf("%s: enabled", way)
	if way == "tls" {
		a.ui.printf("vmctl api cert NAME makes a client's certificate")
	}
	return a.printAPI(ctx, conn, true)
}

// checkPlaintext refuses to open a way whose risk was not accepted.
func checkPlaintext(way string, accepted bool) error {
	if way == "loopback" && !accepted {
		return errors.New("loopback: nothing is encrypted, and every process in this host's network namespace that runs as root or as a member of vmctl or vmctl-viewers is let in, those of containers on the host's network and of guests with user-mode networking too: want --plaintext to open it")
	}
	if way != "loopback" && accepted {
		return fmt.Errorf("--plaintext: want none with %s", way)
	}
	return nil
}

// checkListen refuses addresses that a way must not listen on.
func checkListen(way, listen string) error {
	if listen == "" {
		return nil
	}
	if way == "unix" {
		return errors.New("--listen: want none with unix")
	}
	if port, err := strconv.ParseUint(listen, 10, 16); err == nil && port > 0 && way == "tls" {
		return nil
	}
	address, err := netip.ParseAddrPort(listen)
	switch {
	case err != nil || address.Port() == 0:
		return fmt.Errorf("--listen: want ADDRESS:PORT such as 192.0.2.7:50443 or [::1]:50051, got %q", listen)
	case way == "loopback" && !address.Addr().IsLoopback():
		return fmt.Errorf("--listen: want an address of loopback, since nothing is encrypted, got %s", address.Addr())
	}
	return nil
}

// ownNames are the names and addresses by which this host may be called.
func ownNames() (host string, names []string, addresses []net.IP) {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && !ip.IP.IsLinkLocalUnicast() {
			addresses = append(addresses, ip.IP)
		}
	}
	return host, slices.Compact([]string{host, "localhost"}), addresses
}

func newAPIDisableCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "disable unix|tls|loopback",
		Short:             "Close a way to the API, now and for good",
		Long:              "Close a way to the API, now and for good. Calls that are under way end. Certificates stay.",
		Example:           "  vmctl api disable tls",
		Args:              apiWay,
		ValidArgsFunction: completeWay,
		RunE:              func(cmd *cobra.Command, args []string) error { return runAPIDisable(cmd.Context(), a, args[0]) },
	}
}

func runAPIDisable(ctx context.Context, a *app, way string) error {
	conn, err := a.dialForAPI(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, unit := range apiWays[way] {
		if err := conn.Disable(ctx, unit); err != nil {
			return err
		}
		if err := conn.Stop(ctx, unit); err != nil {
			return err
		}
	}
	if err := conn.Stop(ctx, apiService); err != nil {
		return err
	}
	if err := conn.Reload(ctx); err != nil {
		return err
	}
	a.ui.printf("%s: disabled", way)
	return a.printAPI(ctx, conn, true)
}

func newAPIStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the ways to the API, and who may come by certificate",
		Example: `  vmctl api status
  vmctl api status -o json`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := a.dialForAPI(cmd.Context())
			if err != nil {
				return err
			}
			defer conn.Close()
			return a.printAPI(cmd.Context(), conn, false)
		},
	}
}

// apiStatus is vmctl api -o json.
type apiStatus struct {
	Ways    []apiSocket `json:"ways"`
	Running bool        `json:"running"` // the service: it ends by itself
	// Of TLS; null where there is no certificate.
	CertificateEnds *time.Time  `json:"certificate_ends"`
	Clients         []apiClient `json:"clients"`
}

type apiSocket struct {
	Way     string `json:"way"`
	Unit    string `json:"unit"`
	Active  bool   `json:"active"`
	Enabled bool   `json:"enabled"`
}

type apiClient struct {
	Name string `json:"name"`
	Role string `json:"role"`
}

// printAPI tells how things are; after a change in JSON alone.
func (a *app) printAPI(ctx context.Context, conn *bus.Conn, changed bool) error {
	if changed && a.ui.format == textFormat {
		return nil
	}
	s := apiStatus{Clients: []apiClient{}}
	for _, way := range []string{"unix", "tls", "loopback"} {
		for _, unit := range apiWays[way] {
			p, err := conn.Properties(ctx, unit)
			if err != nil {
				return err
			}
			s.Ways = append(s.Ways, apiSocket{way, unit, p.ActiveState == "active", p.UnitFileState == "enabled"})
		}
	}
	if p, err := conn.Properties(ctx, apiService); err == nil {
		s.Running = p.ActiveState == "active"
	}
	if c, err := a.certificates().ServerCertificate(); err == nil {
		s.CertificateEnds = &c.NotAfter
	}
	names, roles := a.certificates().Clients()
	for _, name := range names {
		s.Clients = append(s.Clients, apiClient{name, roles[name]})
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(s)
	}
	table := [][]string{{"WAY", "UNIT", "LISTENS", "WITH THE HOST"}}
	for _, w := range s.Ways {
		table = append(table, []string{w.Way, w.Unit, yesNo(w.Active), yesNo(w.Enabled)})
	}
	if err := writeTable(a.ui.out, table); err != nil {
		return err
	}
	if s.CertificateEnds != nil {
		a.ui.printf("\nThe server's certificate holds until %s.", s.CertificateEnds.Format(time.DateOnly))
	}
	if len(s.Clients) == 0 {
		return nil
	}
	a.ui.printf("")
	table = [][]string{{"CLIENT", "ROLE"}}
	for _, c := range s.Clients {
		table = append(table, []string{c.Name, c.Role})
	}
	return writeTable(a.ui.out, table)
}

// apiCertOptions are the flags of vmctl api cert.
type apiCertOptions struct {
	role   string
	holds  span
	out    string
	revoke bool
}

func newAPICertCommand(a *app) *cobra.Command {
	opts := apiCertOptions{holds: span(365 * 24 * time.Hour)}
	cmd := &cobra.Command{
		Use:   "cert NAME",
		Short: "Make a client's certificate, or revoke it",
		Long: `Make a certificate by which a client of this NAME comes in over TLS: NAME.pem and
NAME.key, with the authority's ca.pem beside it, in the directory --out. The key is kept
nowhere else. What the client may do is in /etc/vmctl/api/clients/NAME, "operator" or
"viewer", and holds from the next call on. With --revoke its certificates are refused,
and connections that it has are closed within seconds.`,
		Example:           "  vmctl api cert ops@laptop --out ~/vmctl-api\n  vmctl api cert monitoring --role viewer\n  vmctl api cert ops@laptop --revoke",
		Args:              oneArgument,
		ValidArgsFunction: a.completeClients,
		RunE:              func(_ *cobra.Command, args []string) error { return runAPICert(a, opts, args[0]) },
	}
	cmd.Flags().StringVar(&opts.role, "role", certificates.Operator, "what it may do: operator or viewer")
	cmd.Flags().Var(&opts.holds, "valid", "how long the certificate holds, e.g. 90d")
	cmd.Flags().StringVar(&opts.out, "out", ".", "`DIRECTORY` for the files")
	cmd.Flags().BoolVar(&opts.revoke, "revoke", false, "revoke what was made for NAME")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]cobra.Completion{certificates.Operator, certificates.Viewer}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// oneArgument accepts one argument, whatever it is.
func oneArgument(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("want the name of a client, got %d arguments", len(args))}
	}
	return nil
}

func (a *app) completeClients(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names, _ := a.certificates().Clients()
	names = slices.DeleteFunc(names, func(name string) bool { return len(args) > 0 || !strings.HasPrefix(name, prefix) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

func runAPICert(a *app, opts apiCertOptions, name string) error {
	if err := certificates.CheckName(name); err != nil {
		return usageError{err}
	}
	if opts.role != certificates.Operator && opts.role != certificates.Viewer {
		return usageError{fmt.Errorf("--role: want operator or viewer, got %q", opts.role)}
	}
	if opts.revoke {
		return a.revokeClient(name)
	}
	if opts.holds <= 0 || config.Duration(opts.holds) == config.Infinity {
		return usageError{errors.New("--valid: want a span of time, e.g. 90d")}
	}
	authority, err := os.ReadFile(filepath.Join(a.paths.API, "ca.pem"))
	if errors.Is(err, os.ErrNotExist) {
		return withHint(&stateError{errors.New("there is no certificate authority yet")}, "vmctl api enable tls makes it")
	}
	if err != nil {
		return err
	}
	files := map[string]string{"certificate": filepath.Join(opts.out, name+".pem"), "key": filepath.Join(opts.out, name+".key"), "authority": filepath.Join(opts.out, "ca.pem")}
	for _, kind := range []string{"certificate", "key"} {
		if access.IsThere(files[kind]) {
			return &stateError{fmt.Errorf("%s is there already", files[kind])}
		}
	}
	if err := os.MkdirAll(opts.out, 0o700); err != nil {
		return err
	}
	certificate, key, err := a.certificates().Issue(name, opts.role, time.Duration(opts.holds))
	if err != nil {
		return err
	}
	if err := access.CreateFile(files["key"], key, 0o600, true); err != nil {
		return err
	}
	if err := access.CreateFile(files["certificate"], certificate, 0o644, true); err != nil {
		return err
	}
	if err := access.WriteFile(files["authority"], authority, 0o644, true); err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(struct {
			Name  string            `json:"name"`
			Role  string            `json:"role"`
			Files map[string]string `json:"files"`
		}{name, opts.role, files})
	}
	a.ui.printf("%s: %s, by %s and %s", name, opts.role, files["certificate"], files["key"])
	return nil
}

func (a *app) revokeClient(name string) error {
	n, err := a.certificates().Revoke(name)
	if errors.Is(err, os.ErrNotExist) {
		return &notFoundError{Kind: "client", Name: name, Hint: "vmctl api status lists them"}
	}
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(struct {
			Name    string `json:"name"`
			Revoked int    `json:"revoked"`
		}{name, n})
	}
	if n == 0 {
		a.ui.printf("%s: has no role any more; its certificates are another authority's to revoke", name)
		return nil
	}
	a.ui.printf("%s: revoked", name)
	return nil
}
