package main

import (
	"bytes"
	"context"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// metricsService is vmctl metrics.
type metricsService struct {
	vmctlv1.UnimplementedMetricsServiceServer
	*server
}

func (s *metricsService) GetMetrics(ctx context.Context, _ *vmctlv1.GetMetricsRequest) (*vmctlv1.GetMetricsResponse, error) {
	var text bytes.Buffer
	cmd := look("metrics")
	cmd.text = &text
	if err := s.ask(ctx, cmd, nil); err != nil {
		return nil, err
	}
	return &vmctlv1.GetMetricsResponse{Text: text.String()}, nil
}
