package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// networkService is vmctl network.
type networkService struct {
	vmctlv1.UnimplementedNetworkServiceServer
	*server
}

// networkRow is a network in JSON of vmctl.
type networkRow struct {
	Name            string       `json:"name"`
	State           string       `json:"state"`
	Description     string       `json:"description"`
	Interface       string       `json:"interface"`
	HostBridge      bool         `json:"host_bridge"`
	Subnet          string       `json:"subnet"`
	Subnet6         string       `json:"subnet6"`
	Gateway         string       `json:"gateway"`
	Gateway6        string       `json:"gateway6"`
	DHCP            bool         `json:"dhcp"`
	DHCPRange       string       `json:"dhcp_range"`
	Domain          string       `json:"domain"`
	NAT             bool         `json:"nat"`
	NAT6            bool         `json:"nat6"`
	Isolated        bool         `json:"isolated"`
	MTU             uint32       `json:"mtu_bytes"`
	VLAN            uint32       `json:"vlan"`
	Autostart       bool         `json:"autostart"`
	Machines        []string     `json:"machines"`
	RunningMachines []string     `json:"running_machines"`
	PendingChanges  bool         `json:"pending_changes"`
	Error           string       `json:"error"`
	Cards           []networkNIC `json:"cards"`
	Ports           []string     `json:"other_ports"`
	Leases          []leaseRow   `json:"leases"`
}

type networkNIC struct {
	Machine   string   `json:"vm"`
	NIC       string   `json:"nic"`
	MAC       string   `json:"mac"`
	Interface string   `json:"interface"`
	Running   bool     `json:"running"`
	Forward   []string `json:"forward"`
}

// leaseRow is an address in JSON of vmctl.
type leaseRow struct {
	Network   string     `json:"network"`
	Address   string     `json:"address"`
	Machine   string     `json:"vm"`
	NIC       string     `json:"nic"`
	MAC       string     `json:"mac"`
	Hostname  string     `json:"hostname"`
	Kind      string     `json:"kind"`
	Lent      bool       `json:"lent"`
	ExpiresAt *time.Time `json:"expires_at"`
}

func (r networkRow) message() *vmctlv1.Network {
	return &vmctlv1.Network{
		Name: r.Name, State: vmctlv1.NetworkState(vmctlv1.NetworkState_value["NETWORK_STATE_"+strings.ToUpper(r.State)]),
		Description: r.Description, Interface: r.Interface, HostBridge: r.HostBridge, Subnet: r.Subnet, Subnet6: r.Subnet6,
		Gateway: r.Gateway, Gateway6: r.Gateway6, Dhcp: r.DHCP, DhcpRange: r.DHCPRange, Domain: r.Domain, Nat: r.NAT, Nat6: r.NAT6,
		Isolated: r.Isolated, MtuBytes: r.MTU, Vlan: r.VLAN, Autostart: r.Autostart, Machines: r.Machines,
		RunningMachines: r.RunningMachines, PendingChanges: r.PendingChanges, Error: r.Error,
	}
}

func leases(rows []leaseRow) (out []*vmctlv1.Lease) {
	for _, r := range rows {
		l := &vmctlv1.Lease{
			Network: r.Network, Address: r.Address, Machine: r.Machine, Nic: r.NIC, Mac: r.MAC, Hostname: r.Hostname,
			Kind: vmctlv1.LeaseKind(vmctlv1.LeaseKind_value["LEASE_KIND_"+strings.ToUpper(r.Kind)]), Lent: r.Lent,
		}
		if r.ExpiresAt != nil {
			l.ExpiresAt = timestamppb.New(*r.ExpiresAt)
		}
		out = append(out, l)
	}
	return out
}

// show is a network that the caller may use.
func (s *networkService) show(ctx context.Context, name string) (*networkRow, error) {
	var row networkRow
	if err := s.ask(ctx, look("network", "show", "--", name), &row); err != nil {
		return nil, err
	}
	return &row, nil
}

// do has vmctl do something to a network, and finds how that is then.
func (s *networkService) do(ctx context.Context, name string, args ...string) (*vmctlv1.Network, error) {
	if err := s.allowNamed(ctx, networkObject, "name", name); err != nil {
		return nil, err
	}
	if err := s.ask(ctx, vmctl(append(append([]string{"network"}, args...), "--", name)...), nil); err != nil {
		return nil, err
	}
	row, err := s.show(ctx, name)
	if err != nil {
		return nil, err
	}
	return row.message(), nil
}

func (s *networkService) ListNetworks(ctx context.Context, _ *vmctlv1.ListNetworksRequest) (*vmctlv1.ListNetworksResponse, error) {
	var rows []networkRow
	if err := s.ask(ctx, look("network", "list"), &rows); err != nil {
		return nil, err
	}
	out := &vmctlv1.ListNetworksResponse{}
	for _, row := range rows {
		out.Networks = append(out.Networks, row.message())
	}
	return out, nil
}

func (s *networkService) GetNetwork(ctx context.Context, r *vmctlv1.GetNetworkRequest) (*vmctlv1.GetNetworkResponse, error) {
	if err := s.allowNamed(ctx, networkObject, "name", r.GetName()); err != nil {
		return nil, err
	}
	row, err := s.show(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	out := &vmctlv1.GetNetworkResponse{Network: row.message(), OtherPorts: row.Ports, Leases: leases(row.Leases)}
	for _, c := range row.Cards {
		out.Cards = append(out.Cards, &vmctlv1.NetworkCard{
			Machine: c.Machine, Nic: c.NIC, Mac: c.MAC, Interface: c.Interface, Running: c.Running, Forward: c.Forward,
		})
	}
	return out, nil
}

func (s *networkService) CreateNetwork(ctx context.Context, r *vmctlv1.CreateNetworkRequest) (*vmctlv1.CreateNetworkResponse, error) {
	cmd := vmctl("create")
	cmd.option("--description", r.GetDescription())
	cmd.option("--subnet", r.GetSubnet())
	cmd.option("--subnet6", r.GetSubnet6())
	cmd.option("--dhcp-range", r.GetDhcpRange())
	cmd.option("--domain", r.GetDomain())
	cmd.option("--bridge", r.GetBridge())
	if r.GetMtuBytes() > 0 {
		cmd.option("--mtu", strconv.FormatUint(uint64(r.GetMtuBytes()), 10))
	}
	for flag, on := range map[string]bool{"--isolated": r.GetIsolated(), "--no-nat": r.GetNoNat(), "--autostart": r.GetAutostart()} {
		if on {
			cmd.args = append(cmd.args, flag)
		}
	}
	for _, setting := range r.GetSettings() {
		cmd.option("--set", setting)
	}
	n, err := s.do(ctx, r.GetName(), cmd.args...)
	if err != nil {
		return nil, err
	}
	return &vmctlv1.CreateNetworkResponse{Network: n}, nil
}

func (s *networkService) StartNetwork(ctx context.Context, r *vmctlv1.StartNetworkRequest) (*vmctlv1.StartNetworkResponse, error) {
	n, err := s.do(ctx, r.GetName(), "start")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.StartNetworkResponse{Network: n}, nil
}

func (s *networkService) StopNetwork(ctx context.Context, r *vmctlv1.StopNetworkRequest) (*vmctlv1.StopNetworkResponse, error) {
	n, err := s.do(ctx, r.GetName(), "stop")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.StopNetworkResponse{Network: n}, nil
}

// DeleteNetwork has a unit of its own remove it: what systemd keeps of its DHCP
// service is where this one may not write.
func (s *networkService) DeleteNetwork(ctx context.Context, r *vmctlv1.DeleteNetworkRequest) (*vmctlv1.DeleteNetworkResponse, error) {
	if err := s.allowNamed(ctx, networkObject, "name", r.GetName()); err != nil {
		return nil, err
	}
	cmd := vmctl("network", "delete", "--yes", "--", r.GetName())
	cmd.apart = true
	return &vmctlv1.DeleteNetworkResponse{}, s.ask(ctx, cmd, nil)
}

func (s *networkService) ListLeases(ctx context.Context, r *vmctlv1.ListLeasesRequest) (*vmctlv1.ListLeasesResponse, error) {
	for _, name := range r.GetNetworks() {
		if err := s.allowNamed(ctx, networkObject, "networks", name); err != nil {
			return nil, err
		}
	}
	var rows []leaseRow
	if err := s.ask(ctx, look(append([]string{"network", "leases", "--"}, r.GetNetworks()...)...), &rows); err != nil {
		return nil, err
	}
	return &vmctlv1.ListLeasesResponse{Leases: leases(rows)}, nil
}
