package main

import (
	"cmp"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
	"github.com/vmctl/vmctl/config"
)

// imageService is vmctl image.
type imageService struct {
	vmctlv1.UnimplementedImageServiceServer
	*server
}

// imageRow is an image in JSON of vmctl.
type imageRow struct {
	Name        string    `json:"name"`
	Format      string    `json:"format"`
	VirtualSize uint64    `json:"virtual_size_bytes"`
	FileSize    uint64    `json:"file_size_bytes"`
	Allocated   uint64    `json:"allocated_bytes"`
	SHA256      string    `json:"sha256"`
	Source      string    `json:"source"`
	Checksum    string    `json:"checksum"`
	SignedBy    string    `json:"signed_by"`
	StoredAt    time.Time `json:"stored_at"`
	File        string    `json:"file"`
	Fresh       bool      `json:"fresh"`
	Children    []struct {
		VM string `json:"vm"`
	} `json:"children"`
}

func (r imageRow) message() *vmctlv1.Image {
	out := &vmctlv1.Image{
		Name: r.Name, Format: r.Format, VirtualSizeBytes: r.VirtualSize, FileSizeBytes: r.FileSize, AllocatedBytes: r.Allocated,
		Sha256: r.SHA256, Source: r.Source, Checksum: r.Checksum, SignedBy: r.SignedBy, StoredAt: timestamppb.New(r.StoredAt), File: r.File,
	}
	seen := map[string]bool{}
	for _, c := range r.Children {
		if !seen[c.VM] {
			seen[c.VM] = true
			out.Machines = append(out.Machines, c.VM)
		}
	}
	return out
}

func (s *imageService) ListImages(ctx context.Context, _ *vmctlv1.ListImagesRequest) (*vmctlv1.ListImagesResponse, error) {
	var rows []imageRow
	if err := s.ask(ctx, look("image", "list"), &rows); err != nil {
		return nil, err
	}
	out := &vmctlv1.ListImagesResponse{}
	for _, row := range rows {
		out.Images = append(out.Images, row.message())
	}
	return out, nil
}

func (s *imageService) ListAvailableImages(ctx context.Context, _ *vmctlv1.ListAvailableImagesRequest) (*vmctlv1.ListAvailableImagesResponse, error) {
	var rows []struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		URL         string `json:"url"`
		Signed      bool   `json:"signed"`
		Stored      bool   `json:"stored"`
	}
	if err := s.ask(ctx, look("image", "list", "--available"), &rows); err != nil {
		return nil, err
	}
	out := &vmctlv1.ListAvailableImagesResponse{}
	for _, r := range rows {
		out.Images = append(out.Images, &vmctlv1.AvailableImage{Name: r.Name, Description: r.Description, Url: r.URL, Signed: r.Signed, Stored: r.Stored})
	}
	return out, nil
}

// allowStored says that a call stores an image under a name, and whether the caller
// may: of both, the name and where the image comes from.
func (s *imageService) allowStored(ctx context.Context, source, name string) error {
	if err := config.CheckImageName(name); err != nil {
		return status.Errorf(codes.InvalidArgument, "name: %v", err)
	}
	return s.allowUse(ctx, imageObject, name, source)
}

// PullImage has a unit of its own pull: the service reaches no other host.
func (s *imageService) PullImage(r *vmctlv1.PullImageRequest, stream vmctlv1.ImageService_PullImageServer) error {
	ctx := stream.Context()
	stored := r.GetSource() // a name
	if strings.Contains(stored, "://") {
		stored = config.ImageName(stored)
	}
	if err := s.allowStored(ctx, r.GetSource(), cmp.Or(r.GetName(), stored)); err != nil {
		return err
	}
	if r.GetKeyFile() != "" && !filepath.IsAbs(r.GetKeyFile()) {
		return status.Errorf(codes.InvalidArgument, "key_file: want an absolute path, got %q", r.GetKeyFile())
	}
	cmd := vmctl("image", "pull", "--progress")
	cmd.option("--name", r.GetName())
	cmd.option("--format", r.GetFormat())
	cmd.option("--checksum", r.GetChecksum())
	cmd.option("--checksums", r.GetChecksumsUrl())
	cmd.option("--signature", r.GetSignatureUrl())
	cmd.option("--key", r.GetKeyFile())
	if r.GetUpdate() {
		cmd.args = append(cmd.args, "--update")
	}
	cmd.args = append(cmd.args, "--", r.GetSource())
	var rows []imageRow
	err := s.stored(ctx, cmd, &rows, func(p *vmctlv1.ImageProgress) error {
		return stream.Send(&vmctlv1.PullImageResponse{Update: &vmctlv1.PullImageResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	if len(rows) != 1 {
		return status.Errorf(codes.Internal, "want one image, got %d", len(rows))
	}
	return stream.Send(&vmctlv1.PullImageResponse{Update: &vmctlv1.PullImageResponse_Image{Image: rows[0].message()}, Fresh: rows[0].Fresh})
}

func (s *imageService) ImportImage(r *vmctlv1.ImportImageRequest, stream vmctlv1.ImageService_ImportImageServer) error {
	ctx := stream.Context()
	if err := s.allowStored(ctx, r.GetFile(), cmp.Or(r.GetName(), config.ImageName(r.GetFile()))); err != nil {
		return err
	}
	if !filepath.IsAbs(r.GetFile()) {
		return status.Errorf(codes.InvalidArgument, "file: want an absolute path, got %q", r.GetFile())
	}
	cmd := vmctl("image", "import", "--progress")
	cmd.option("--name", r.GetName())
	cmd.option("--format", r.GetFormat())
	cmd.option("--checksum", r.GetChecksum())
	if r.GetReplace() {
		cmd.args = append(cmd.args, "--replace")
	}
	cmd.args = append(cmd.args, "--", r.GetFile())
	var row imageRow
	err := s.stored(ctx, cmd, &row, func(p *vmctlv1.ImageProgress) error {
		return stream.Send(&vmctlv1.ImportImageResponse{Update: &vmctlv1.ImportImageResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	return stream.Send(&vmctlv1.ImportImageResponse{Update: &vmctlv1.ImportImageResponse_Image{Image: row.message()}})
}

// stored has vmctl store an image, and sends how far it is.
func (s *imageService) stored(ctx context.Context, cmd command, result any, send func(*vmctlv1.ImageProgress) error) error {
	cmd.long, cmd.apart = true, true
	err := s.told(ctx, cmd, result, func(line json.RawMessage) (func() error, error) {
		var p struct {
			Phase string `json:"phase"`
			Done  uint64 `json:"done_bytes"`
			Total uint64 `json:"total_bytes"`
			Rate  uint64 `json:"rate_bytes_per_second"`
		}
		err := json.Unmarshal(line, &p)
		progress := &vmctlv1.ImageProgress{Phase: p.Phase, DoneBytes: p.Done, TotalBytes: p.Total, RateBytesPerSecond: p.Rate}
		return func() error { return send(progress) }, err
	})
	return statusOf("", err)
}

func (s *imageService) DeleteImage(ctx context.Context, r *vmctlv1.DeleteImageRequest) (*vmctlv1.DeleteImageResponse, error) {
	if err := config.CheckImageName(r.GetName()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "name: %v", err)
	}
	if err := s.allowUse(ctx, imageObject, r.GetName()); err != nil {
		return nil, err
	}
	return &vmctlv1.DeleteImageResponse{}, s.ask(ctx, vmctl("image", "delete", "--yes", "--", r.GetName()), nil)
}
