package main

import (
	"context"
	"sync"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/journal"
)

// What one caller, or all together, can make the service hold at most.
const (
	maxConnections = 1024     // of a listener
	maxOfEach      = 512      // of those, of one user or host
	maxStreams     = 256      // of a connection, calls included
	maxRequest     = 1 << 20  // bytes; user data of 512 KiB is the largest that a definition takes
	maxHeaders     = 64 << 10 // bytes, of a call
	maxQuick       = 16       // vmctl processes at once that wait for no machine; others wait
	maxWaiting     = 64       // of those that do; others wait
	maxLong        = 64       // of those that may run for long; others are refused
	maxLongOfEach  = 32       // of those, of one caller
	handshakeTime  = 10 * time.Second
	quietTime      = time.Minute      // after which it is asked whether the other end is still there
	answerTime     = 20 * time.Second // for that
)

// server is the service.
type server struct {
	paths    config.Paths
	commands *commands
	activity *activity
	grpc     *grpc.Server
	methods  map[string]bool // that it has, such as "/mvirt.VmService/StartVm"
	ending   context.Context // ends when the service does
	end      context.CancelFunc
	health   *health.Server
	host     *hostInfo
	watch    *watchers
	policy   policy
	journal  func(journal.Call, string, sdjournal.Priority)

	creating   chan struct{}  // holds one while an id is looked for
	background sync.WaitGroup // of what goes on after its call
}

// newServer makes the service; program is vmctl.
func newServer(paths config.Paths, program string) *server {
	s := &server{
		paths:    paths,
		commands: newCommands(program),
		activity: newActivity(),
		health:   health.NewServer(),
		host:     newHostInfo("/"),
		policy:   newPolkit(),
		creating: make(chan struct{}, 1),
		// A host without a journal keeps nothing.
		journal: func(c journal.Call, text string, p sdjournal.Priority) { _ = journal.SendCall(c, text, p) },
	}
	s.watch = newWatchers(s)
	s.ending, s.end = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(newGates()),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(noMethod),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: quietTime, Timeout: answerTime}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	mvirt.RegisterVmServiceServer(s.grpc, &mvirtService{server: s})
	vmctlv1.RegisterMachineServiceServer(s.grpc, &machineService{server: s})
	vmctlv1.RegisterSnapshotServiceServer(s.grpc, &snapshotService{server: s})
	vmctlv1.RegisterImageServiceServer(s.grpc, &imageService{server: s})
	vmctlv1.RegisterNetworkServiceServer(s.grpc, &networkService{server: s})
	vmctlv1.RegisterExecServiceServer(s.grpc, &execService{server: s})
	vmctlv1.RegisterMetricsServiceServer(s.grpc, &metricsService{server: s})
	vmctlv1.RegisterEnvironmentServiceServer(s.grpc, &environmentService{server: s})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.methods = methodsOf(s.grpc.GetServiceInfo())
	return s
}

// readTime is how long callers have to read what was answered when the service ends.
const readTime = time.Second

// shutDown ends the service: streams at once, calls that run within a time. For who
// does not read it does not wait.
func (s *server) shutDown(within time.Duration) {
	s.health.Shutdown()
	s.end()
	timer := time.AfterFunc(within, s.grpc.Stop)
	defer timer.Stop()
	go func() {
		time.Sleep(readTime) // in which calls that come just now are told to come again
		<-s.activity.idleFor(readTime)
		s.grpc.Stop()
	}()
	s.grpc.GracefulStop()
	done := make(chan struct{})
	go func() {
		s.background.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(within):
	}
}

// inBackground does what is not ended with its call.
func (s *server) inBackground(do func()) {
	end := s.activity.begin()
	s.background.Go(func() {
		defer end()
		do()
	})
}
