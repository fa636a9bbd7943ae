//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
)

// Who starts, stops and kills a machine at once by the API, by vmctl and by systemctl
// is each told how that ended, and all see the same machine after it.
func TestAPIRaces(t *testing.T) {
	newerSuiteOnly(t, "systemd decides who comes first, on both by the same rules")
	t.Parallel()
	api := mvirt.NewVmServiceClient(dialAPI(t, apiSocket))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	v := newVMFrom(t, "api-races", firmwareOnly+"[lifecycle]\nstop_timeout = \"1s\"\nrestart = \"no\"\n")
	run(t, "systemctl", "daemon-reload")
	all, err := api.ListVms(ctx, &mvirt.ListVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(all.Vms, func(vm *mvirt.Vm) bool { return vm.GetName() == v.name })
	if at < 0 {
		t.Fatalf("%s is not among %v", v.name, all.Vms)
	}
	id := all.Vms[at].Id

	told := map[string]int{}
	var mu sync.Mutex
	count := func(who string, how any) {
		mu.Lock()
		defer mu.Unlock()
		told[fmt.Sprint(who, ": ", how)]++
	}
	command := func(who string, codes []int, argv ...string) func() {
		return func() {
			r := try(argv...)
			count(who, r.code)
			if !slices.Contains(codes, r.code) {
				t.Errorf("%v: %+v", argv, r)
			}
		}
	}
	call := func(who string, do func() error) func() {
		return func() {
			err := do()
			count(who, status.Code(err))
			overtaken := status.Code(err) == codes.Internal && strings.Contains(err.Error(), "canceled by another job")
			if !overtaken && !slices.Contains([]codes.Code{codes.OK, codes.FailedPrecondition}, status.Code(err)) {
				t.Errorf("%s: %v", who, err)
			}
		}
	}
	for range 8 {
		var over sync.WaitGroup
		for _, do := range []func(){
			command("vmctl start", []int{0, 1, 4}, "vmctl", "start", v.name),
			command("vmctl stop", []int{0, 1, 4}, "vmctl", "stop", v.name),
			command("systemctl start", []int{0, 1}, "systemctl", "start", v.unit()),
			command("systemctl stop", []int{0, 1}, "systemctl", "stop", v.unit()),
			call("StartVm", func() error { _, err := api.StartVm(ctx, &mvirt.StartVmRequest{Id: id}); return err }),
			call("StopVm", func() error {
				_, err := api.StopVm(ctx, &mvirt.StopVmRequest{Id: id, TimeoutSeconds: 1})
				return err
			}),
			call("KillVm", func() error { _, err := api.KillVm(ctx, &mvirt.KillVmRequest{Id: id}); return err }),
		} {
			over.Go(do)
		}
		over.Wait()
		want := map[string]mvirt.VmState{"active": mvirt.VmState_VM_STATE_RUNNING, "inactive": mvirt.VmState_VM_STATE_STOPPED, "failed": mvirt.VmState_VM_STATE_STOPPED}
		eventually(t, "the API, vmctl and systemd see the same", func() bool {
			vm, err := api.GetVm(ctx, &mvirt.GetVmRequest{Id: id})
			state, settled := want[v.property("ActiveState")]
			return err == nil && settled && vm.State == state && (v.show()["state"] == "running") == (state == mvirt.VmState_VM_STATE_RUNNING)
		})
	}
	t.Logf("they were told: %v", told)
	try("vmctl", "stop", v.name)
	run(t, "vmctl", "start", v.name)
	run(t, "vmctl", "stop", v.name)
}
