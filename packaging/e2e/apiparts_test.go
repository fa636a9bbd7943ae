//go:build e2e

package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// apiParts has an environment applied over the API, takes snapshots of its machine,
// which does not run, drives its network, and stores images.
func apiParts(t *testing.T, ctx context.Context) {
	conn := dialAPI(t, apiSocket)
	dir := hostDir(t, "api-parts")
	disk := filepath.Join(dir, "root.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "4M")
	environment := &vmctlv1.Environment{Name: "api-parts", Start: vmctlv1.StartMachines_START_MACHINES_NONE, Text: `
[network.api-parts]
subnet = "10.77.91.0/24"
[vm.api-parts]
memory = "64M"
[vm.api-parts.disk.root]
path = "` + disk + `"
[vm.api-parts.nic.lan]
network = "api-parts"
`}
	t.Cleanup(func() {
		try("vmctl", "delete", "--yes", "api-parts")
		try("vmctl", "network", "delete", "--yes", "api-parts")
	})
	environments := vmctlv1.NewEnvironmentServiceClient(conn)
	plan, err := environments.CheckEnvironment(ctx, &vmctlv1.CheckEnvironmentRequest{Environment: environment})
	if err != nil || !plan.Result.Changed || plan.Result.Steps[0].Result != vmctlv1.StepResult_STEP_RESULT_PLANNED {
		t.Fatalf("plan %v, %v", plan, err)
	}
	apply := func() *vmctlv1.EnvironmentResult {
		t.Helper()
		stream, err := environments.ApplyEnvironment(ctx, &vmctlv1.ApplyEnvironmentRequest{Environment: environment})
		if err != nil {
			t.Fatal(err)
		}
		all := received(t, stream)
		for _, r := range all[:len(all)-1] {
			if s := r.GetStep(); s.GetResult() != vmctlv1.StepResult_STEP_RESULT_DONE {
				t.Errorf("step %v", s)
			}
		}
		return all[len(all)-1].GetResult()
	}
	if result := apply(); !result.GetChanged() || len(result.GetSteps()) != len(plan.Result.Steps) {
		t.Errorf("applied %v", result)
	}
	if result := apply(); result == nil || result.Changed {
		t.Errorf("applied again: %v", result)
	}
	apiSnapshots(t, ctx, conn)
	apiNetworks(t, ctx, conn)
	apiImages(t, ctx, conn, dir)
	metrics, err := vmctlv1.NewMetricsServiceClient(conn).GetMetrics(ctx, &vmctlv1.GetMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	contains(t, metrics.Text, `vmctl_vm_up{vm="api-parts"} 0`, "# EOF")
	_, _, _, err = apiExec(ctx, conn, "api-parts", "", "true")
	wantCode(t, "a command in what does not run", err, codes.FailedPrecondition, "invalid transition from stopped")
}

// received is all that a stream has.
func received[T any](t *testing.T, stream grpc.ServerStreamingClient[T]) []*T {
	t.Helper()
	var all []*T
	for {
		one, err := stream.Recv()
		if errors.Is(err, io.EOF) && len(all) > 0 {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
}

func apiSnapshots(t *testing.T, ctx context.Context, conn *grpc.ClientConn) {
	t.Helper()
	snapshots := vmctlv1.NewSnapshotServiceClient(conn)
	if r, err := snapshots.CreateSnapshot(ctx, &vmctlv1.CreateSnapshotRequest{Machine: "api-parts", Name: "one", Description: "by the API"}); err != nil || r.Snapshot.State != vmctlv1.MachineState_MACHINE_STATE_STOPPED {
		t.Fatalf("%v, %v", r, err)
	}
	_, err := snapshots.CreateSnapshot(ctx, &vmctlv1.CreateSnapshotRequest{Machine: "api-parts", Name: "one"})
	wantCode(t, "a name that is taken", err, codes.FailedPrecondition)
	list, err := snapshots.ListSnapshots(ctx, &vmctlv1.ListSnapshotsRequest{Machine: "api-parts"})
	if err != nil || len(list.Snapshots) != 1 || list.Snapshots[0].Description != "by the API" || list.Snapshots[0].Disks[0].SizeBytes != 4*megabyte || list.Snapshots[0].CreatedAt == nil {
		t.Errorf("%v, %v", list, err)
	}
	restored, err := snapshots.RestoreSnapshot(ctx, &vmctlv1.RestoreSnapshotRequest{Machine: "api-parts", Name: "one"})
	if err != nil || !slices.Equal(restored.Disks, []string{"root"}) || restored.Started {
		t.Errorf("%v, %v", restored, err)
	}
	if _, err := snapshots.DeleteSnapshot(ctx, &vmctlv1.DeleteSnapshotRequest{Machine: "api-parts", Name: "one"}); err != nil {
		t.Error(err)
	}
	_, err = snapshots.RestoreSnapshot(ctx, &vmctlv1.RestoreSnapshotRequest{Machine: "api-parts", Name: "one"})
	wantCode(t, "a snapshot that is gone", err, codes.NotFound)
	_, err = snapshots.ListSnapshots(ctx, &vmctlv1.ListSnapshotsRequest{Machine: "api-nowhere"})
	wantCode(t, "no such machine", err, codes.NotFound)
}

func apiNetworks(t *testing.T, ctx context.Context, conn *grpc.ClientConn) {
	t.Helper()
	networks := vmctlv1.NewNetworkServiceClient(conn)
	if r, err := networks.StartNetwork(ctx, &vmctlv1.StartNetworkRequest{Name: "api-parts"}); err != nil || r.Network.State != vmctlv1.NetworkState_NETWORK_STATE_RUNNING {
		t.Fatalf("%v, %v", r, err)
	}
	got, err := networks.GetNetwork(ctx, &vmctlv1.GetNetworkRequest{Name: "api-parts"})
	if err != nil || got.Network.Subnet != "10.77.91.0/24" || len(got.Cards) != 1 || got.Cards[0].Machine != "api-parts" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := networks.ListLeases(ctx, &vmctlv1.ListLeasesRequest{Networks: []string{"api-parts"}}); err != nil {
		t.Error(err)
	}
	all, err := networks.ListNetworks(ctx, &vmctlv1.ListNetworksRequest{})
	if err != nil || !slices.ContainsFunc(all.Networks, func(n *vmctlv1.Network) bool { return n.Name == "api-parts" }) {
		t.Errorf("%v, %v", all, err)
	}
	_, err = networks.DeleteNetwork(ctx, &vmctlv1.DeleteNetworkRequest{Name: "api-parts"})
	wantCode(t, "a network that is used", err, codes.FailedPrecondition, "api-parts is plugged into it")
	if r, err := networks.StopNetwork(ctx, &vmctlv1.StopNetworkRequest{Name: "api-parts"}); err != nil || r.Network.State != vmctlv1.NetworkState_NETWORK_STATE_STOPPED {
		t.Errorf("%v, %v", r, err)
	}
	made, err := networks.CreateNetwork(ctx, &vmctlv1.CreateNetworkRequest{Name: "api-made", Subnet: "10.77.92.0/24", Isolated: true, Settings: []string{"dhcp=false"}})
	if err != nil || !made.Network.Isolated || made.Network.Dhcp {
		t.Errorf("%v, %v", made, err)
	}
	_, err = networks.CreateNetwork(ctx, &vmctlv1.CreateNetworkRequest{Name: "api-wrong", Subnet: "nonsense"})
	wantCode(t, "a subnet of nonsense", err, codes.InvalidArgument)
	if _, err := networks.DeleteNetwork(ctx, &vmctlv1.DeleteNetworkRequest{Name: "api-made"}); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob("/etc/vmctl/networks/api-[mw]*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func apiImages(t *testing.T, ctx context.Context, conn *grpc.ClientConn, dir string) {
	t.Helper()
	images := vmctlv1.NewImageServiceClient(conn)
	file := image(t, filepath.Join(dir, "api.img"), "by the API", 4*megabyte)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	t.Cleanup(func() { try("vmctl", "image", "delete", "--yes", "api-imported", "api-pulled") })
	importing, err := images.ImportImage(ctx, &vmctlv1.ImportImageRequest{File: file, Name: "api-imported"})
	if err != nil {
		t.Fatal(err)
	}
	all := received(t, importing)
	if i := all[len(all)-1].GetImage(); i.GetVirtualSizeBytes() != 4*megabyte || i.GetFormat() != "raw" {
		t.Errorf("%v", all)
	}
	// The service itself reaches no other host.
	pulling, err := images.PullImage(ctx, &vmctlv1.PullImageRequest{Source: server.URL + "/api.img", Name: "api-pulled"})
	if err != nil {
		t.Fatal(err)
	}
	pulled := received(t, pulling)
	if last := pulled[len(pulled)-1]; last.GetImage().GetName() != "api-pulled" || !last.Fresh || len(pulled) < 2 || pulled[0].GetProgress().GetPhase() == "" {
		t.Errorf("%v", pulled)
	}
	list, err := images.ListImages(ctx, &vmctlv1.ListImagesRequest{})
	if err != nil || !slices.ContainsFunc(list.Images, func(i *vmctlv1.Image) bool { return i.Name == "api-pulled" && i.Source == server.URL+"/api.img" }) {
		t.Errorf("%v, %v", list, err)
	}
	if r, err := images.ListAvailableImages(ctx, &vmctlv1.ListAvailableImagesRequest{}); err != nil || len(r.Images) == 0 {
		t.Errorf("%v, %v", r, err)
	}
	for _, name := range []string{"api-imported", "api-pulled"} {
		if _, err := images.DeleteImage(ctx, &vmctlv1.DeleteImageRequest{Name: name}); err != nil {
			t.Error(err)
		}
	}
	_, err = images.DeleteImage(ctx, &vmctlv1.DeleteImageRequest{Name: "api-pulled"})
	wantCode(t, "an image that is gone", err, codes.NotFound)
	if left, _ := filepath.Glob("/run/systemd/transient/vmctl-api-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// apiExec runs a command in a guest over the API.
func apiExec(ctx context.Context, conn *grpc.ClientConn, machine, input string, argv ...string) (stdout, stderr string, exit uint32, err error) {
	stream, err := vmctlv1.NewExecServiceClient(conn).Exec(ctx)
	if err != nil {
		return "", "", 0, err
	}
	// How it ended is told by what is received.
	_ = stream.Send(&vmctlv1.ExecRequest{Part: &vmctlv1.ExecRequest_Command{Command: &vmctlv1.ExecCommand{Machine: machine, Argv: argv}}})
	for len(input) > 0 {
		n := min(len(input), 32<<10)
		_ = stream.Send(&vmctlv1.ExecRequest{Part: &vmctlv1.ExecRequest_Stdin{Stdin: []byte(input[:n])}})
		input = input[n:]
	}
	_ = stream.CloseSend()
	var out, errors strings.Builder
	for {
		r, err := stream.Recv()
		if err == io.EOF {
			return out.String(), errors.String(), exit, nil
		}
		if err != nil {
			return out.String(), errors.String(), exit, err
		}
		out.Write(r.GetStdout())
		errors.Write(r.GetStderr())
		exit = r.GetExitStatus()
	}
}

// executedByAPI runs commands in a guest over the API.
func executedByAPI(t *testing.T, v *vm) {
	conn := dialAPI(t, apiSocket)
	text := strings.Repeat("some text ", 10_000)
	out, stderr, exit, err := apiExec(t.Context(), conn, v.name, text, "sh", "-c", "cat; echo oops >&2; exit 7")
	if out != text || stderr != "oops\n" || exit != 7 || err != nil {
		t.Errorf("%d bytes, %q, %d, %v", len(out), stderr, exit, err)
	}
	// A caller that leaves ends the command.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := vmctlv1.NewExecServiceClient(conn).Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&vmctlv1.ExecRequest{Part: &vmctlv1.ExecRequest_Command{Command: &vmctlv1.ExecCommand{Machine: v.name, Argv: []string{"sh", "-c", "echo begun; exec sleep 4711"}}}}); err != nil {
		t.Fatal(err)
	}
	_ = stream.CloseSend()
	if r, err := stream.Recv(); err != nil || string(r.GetStdout()) != "begun\n" {
		t.Fatalf("%v, %v", r, err)
	}
	cancel()
	eventually(t, "the command has ended in the guest", func() bool {
		return try("vmctl", "exec", "-n", v.name, "--", "pgrep", "-f", "^sleep 4711").code == 1
	})
}
