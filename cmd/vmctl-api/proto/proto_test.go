package proto

import (
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// What is generated is of the files as they are: go generate makes it so.
func TestGenerated(t *testing.T) {
	for _, generated := range []protoreflect.FileDescriptor{mvirt.File_mvirt_mvirt_proto, vmctlv1.File_vmctl_v1_vmctl_proto} {
		compiler := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{})}
		files, err := compiler.Compile(t.Context(), generated.Path())
		if err != nil {
			t.Fatal(err)
		}
		got, want := descriptor(generated), descriptor(files[0])
		if !proto.Equal(got, want) {
			t.Errorf("%s has changed since it was generated: go generate ./cmd/vmctl-api/proto", generated.Path())
		}
	}
}

// descriptor is what a file says, without its comments.
func descriptor(f protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	d := protodesc.ToFileDescriptorProto(f)
	d.SourceCodeInfo = nil
	return d
}
