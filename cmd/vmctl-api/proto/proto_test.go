package proto

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	_ "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// compiled are our files as they are, by what was generated from them.
func compiled(t *testing.T) map[protoreflect.FileDescriptor]protoreflect.FileDescriptor {
	t.Helper()
	out := map[protoreflect.FileDescriptor]protoreflect.FileDescriptor{}
	for _, pkg := range []protoreflect.FullName{"mvirt", "vmctl.v1"} {
		protoregistry.GlobalFiles.RangeFilesByPackage(pkg, func(generated protoreflect.FileDescriptor) bool {
			compiler := protocompile.Compiler{
				Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{}),
				SourceInfoMode: protocompile.SourceInfoStandard,
			}
			files, err := compiler.Compile(t.Context(), generated.Path())
			if err != nil {
				t.Fatal(err)
			}
			out[generated] = files[0]
			return true
		})
	}
	if len(out) != 8 {
		t.Errorf("%d files, want 8", len(out))
	}
	return out
}

// What is generated is of the files as they are: go generate makes it so.
func TestGenerated(t *testing.T) {
	for generated, source := range compiled(t) {
		if !proto.Equal(descriptor(generated), descriptor(source)) {
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

// Whatever a program can say or be told is described, and enums begin with what is
// not known. buf lint asks for the same and more, where it is installed.
func TestDescribed(t *testing.T) {
	for _, file := range compiled(t) {
		if file.Package() != "vmctl.v1" {
			continue
		}
		described := func(d protoreflect.Descriptor) {
			if text := file.SourceLocations().ByDescriptor(d).LeadingComments; strings.TrimSpace(text) == "" {
				t.Errorf("%s: no comment", d.FullName())
			}
		}
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			described(service)
			for j := range service.Methods().Len() {
				described(service.Methods().Get(j))
			}
		}
		for i := range file.Messages().Len() {
			message := file.Messages().Get(i)
			for j := range message.Fields().Len() {
				described(message.Fields().Get(j))
			}
		}
		for i := range file.Enums().Len() {
			enum := file.Enums().Get(i)
			described(enum)
			if zero := enum.Values().Get(0); zero.Number() != 0 || !strings.HasSuffix(string(zero.Name()), "_UNSPECIFIED") {
				t.Errorf("%s: begins with %s", enum.FullName(), zero.Name())
			}
			for j := range enum.Values().Len() {
				described(enum.Values().Get(j))
			}
		}
	}
}

// What mvirt's clients say and are told is, to the last number, what they were written
// for: testdata/mvirt.txt has mvirt-vmm's own methods, fields and values.
func TestWire(t *testing.T) {
	var got []string
	protoregistry.GlobalFiles.RangeFilesByPackage("mvirt", func(f protoreflect.FileDescriptor) bool {
		got = wire(f)
		return true
	})
	file, err := os.ReadFile("testdata/mvirt.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(file)), "\n")
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("not there: %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("not of mvirt: %s", line)
		}
	}
}

// wire is all of a file that its clients' code is generated from, a line each.
func wire(f protoreflect.FileDescriptor) (lines []string) {
	for i := range f.Services().Len() {
		service := f.Services().Get(i)
		for j := range service.Methods().Len() {
			m := service.Methods().Get(j)
			kind := ""
			switch {
			case m.IsStreamingClient():
				kind = "bidi "
			case m.IsStreamingServer():
				kind = "server "
			}
			lines = append(lines, fmt.Sprintf("%s.%s %s%s %s", service.Name(), m.Name(), kind, m.Input().Name(), m.Output().Name()))
		}
	}
	for i := range f.Enums().Len() {
		enum := f.Enums().Get(i)
		for j := range enum.Values().Len() {
			v := enum.Values().Get(j)
			lines = append(lines, fmt.Sprintf("enum %s.%s = %d", enum.Name(), v.Name(), v.Number()))
		}
	}
	for i := range f.Messages().Len() {
		fields := f.Messages().Get(i).Fields()
		for j := range fields.Len() {
			lines = append(lines, wireField(fields.Get(j)))
		}
	}
	return lines
}

func wireField(f protoreflect.FieldDescriptor) string {
	label, kind := "", f.Kind().String()
	switch {
	case f.IsList():
		label = "repeated "
	case f.HasOptionalKeyword():
		label = "optional "
	}
	switch {
	case f.Message() != nil:
		kind = string(f.Message().Name())
	case f.Enum() != nil:
		kind = string(f.Enum().Name())
	}
	return fmt.Sprintf("%s.%s = %d %s%s", f.Parent().Name(), f.Name(), f.Number(), label, kind)
}
