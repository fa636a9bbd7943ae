package main

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// environmentService is vmctl apply.
type environmentService struct {
	vmctlv1.UnimplementedEnvironmentServiceServer
	*server
}

// applied is vmctl apply -o json.
type applied struct {
	Changed        bool      `json:"changed"`
	Steps          []stepRow `json:"steps"`
	PendingRestart []string  `json:"pending_restart"`
	Warnings       []struct {
		File string `json:"file"`
		Key  string `json:"key"`
		Text string `json:"text"`
	} `json:"warnings"`
}

// stepRow is one of its steps, as --progress has it too.
type stepRow struct {
	Action      string `json:"action"`
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	File        string `json:"file"`
	Result      string `json:"result"`
	Differences []struct {
		Key  string `json:"key"`
		From string `json:"from"`
		To   string `json:"to"`
	} `json:"differences"`
	Error *commandError `json:"error"`
}

func (r stepRow) message() *vmctlv1.Step {
	out := &vmctlv1.Step{
		Action: r.Action, Kind: r.Kind, Name: r.Name, File: r.File,
		Result: vmctlv1.StepResult(vmctlv1.StepResult_value["STEP_RESULT_"+strings.ToUpper(r.Result)]),
	}
	for _, d := range r.Differences {
		out.Differences = append(out.Differences, &vmctlv1.Difference{Key: d.Key, From: d.From, To: d.To})
	}
	if r.Error != nil {
		out.Error = r.Error.Message
	}
	return out
}

func (a applied) message() *vmctlv1.EnvironmentResult {
	out := &vmctlv1.EnvironmentResult{Changed: a.Changed, PendingRestart: a.PendingRestart}
	for _, s := range a.Steps {
		out.Steps = append(out.Steps, s.message())
	}
	for _, w := range a.Warnings {
		var parts []string
		for _, part := range []string{w.File, w.Key, w.Text} {
			if part != "" {
				parts = append(parts, part)
			}
		}
		out.Warnings = append(out.Warnings, strings.Join(parts, ": "))
	}
	return out
}

// apply is the command for an environment.
func apply(e *vmctlv1.Environment, flags ...string) (command, error) {
	if name := e.GetName(); name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return command{}, status.Error(codes.InvalidArgument, "environment.name: want one line of at most 255 bytes")
	}
	cmd := vmctl(append([]string{"apply", "--name=" + e.GetName()}, flags...)...)
	if e.GetPrune() {
		cmd.args = append(cmd.args, "--prune")
	}
	if e.GetForce() {
		cmd.args = append(cmd.args, "--force")
	}
	if e.GetRestart() {
		cmd.args = append(cmd.args, "--restart")
	}
	if e.GetNoPull() {
		cmd.args = append(cmd.args, "--no-pull")
	}
	switch e.GetStart() {
	case vmctlv1.StartMachines_START_MACHINES_ALL:
		cmd.args = append(cmd.args, "--start")
	case vmctlv1.StartMachines_START_MACHINES_NONE:
		cmd.args = append(cmd.args, "--no-start")
	}
	cmd.args, cmd.stdin = append(cmd.args, "-"), e.GetText()
	return cmd, nil
}

// unchanged is an error of vmctl apply, nil where it is that there are changes.
func unchanged(err error) error {
	if e, ok := errors.AsType[*commandError](err); ok && e.Status == exitChanged {
		return nil
	}
	return err
}

// check finds what there is to be done, all of which the caller has to be allowed.
func (s *environmentService) check(ctx context.Context, e *vmctlv1.Environment) (*applied, error) {
	if err := s.allowUse(ctx, environmentObject, e.GetName()); err != nil {
		return nil, err
	}
	cmd, err := apply(e, "--check")
	if err != nil {
		return nil, err
	}
	var plan applied
	if err := unchanged(s.commands.run(ctx, cmd, &plan)); err != nil {
		return nil, statusOf("", err)
	}
	c := callOf(ctx)
	var objects []object
	for _, step := range plan.Steps {
		if step.Kind != "" { // of systemd
			objects = append(objects, object{step.Kind, step.Name})
		}
	}
	return &plan, errors.Join(s.policy.check(ctx, c, objects)...)
}

func (s *environmentService) CheckEnvironment(ctx context.Context, r *vmctlv1.CheckEnvironmentRequest) (*vmctlv1.CheckEnvironmentResponse, error) {
	plan, err := s.check(ctx, r.GetEnvironment())
	if err != nil {
		return nil, err
	}
	return &vmctlv1.CheckEnvironmentResponse{Result: plan.message()}, nil
}

// ApplyEnvironment has a unit of its own apply it, which reaches other hosts for
// images.
func (s *environmentService) ApplyEnvironment(r *vmctlv1.ApplyEnvironmentRequest, stream vmctlv1.EnvironmentService_ApplyEnvironmentServer) error {
	ctx := stream.Context()
	if _, err := s.check(ctx, r.GetEnvironment()); err != nil {
		return err
	}
	cmd, err := apply(r.GetEnvironment(), "--yes", "--progress")
	if err != nil {
		return err
	}
	cmd.long, cmd.apart = true, true
	var done applied
	err = s.told(ctx, cmd, &done, func(line json.RawMessage) (func() error, error) {
		var step stepRow
		err := json.Unmarshal(line, &step)
		return func() error {
			return stream.Send(&vmctlv1.ApplyEnvironmentResponse{Update: &vmctlv1.ApplyEnvironmentResponse_Step{Step: step.message()}})
		}, err
	})
	err = unchanged(err)
	if err != nil && len(done.Steps) == 0 {
		return statusOf("", err)
	}
	result := &vmctlv1.ApplyEnvironmentResponse{Update: &vmctlv1.ApplyEnvironmentResponse_Result{Result: done.message()}}
	if sendErr := stream.Send(result); err == nil {
		return sendErr
	}
	return statusOf("", err)
}
