package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// manualExample is the example of the manual page that a line introduces, as a reader
// types it.
func manualExample(t *testing.T, after string) string {
	t.Helper()
	page, err := os.ReadFile("../../packaging/man/vmctl-api.8")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "\n"+after+"\n")
	_, rest, begun := strings.Cut(rest, "\n.EX\n")
	text, _, ended := strings.Cut(rest, "\n.EE\n")
	if !found || !begun || !ended {
		t.Fatalf("no example after %q", after)
	}
	return strings.NewReplacer(`\-`, "-", `\e`, `\`, `\(aq`, "'").Replace(text) + "\n"
}

// The program of the manual page does what it is there for.
func TestManualGo(t *testing.T) {
	s := newService(t)
	s.define(t, 2)
	const socket = "unix:/run/vmctl/api.sock"
	text := manualExample(t, "In Go:")
	if strings.Count(text, socket) != 1 {
		t.Fatalf("no %s in\n%s", socket, text)
	}
	text = strings.Replace(text, socket, "unix:"+s.listen(t, "unix", unixGate{operator}).String(), 1)
	file := filepath.Join(t.TempDir(), "main.go")
	program := fmt.Sprintf(`package main

import (
	"context"
	"fmt"
	"log"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
)

func main() {
%s}
`, text)
	if err := os.WriteFile(file, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "run", file).CombinedOutput()
	if want := "vm0001 VM_STATE_STOPPED\n"; err != nil || !strings.Contains(string(out), want) {
		t.Errorf("%s%v, want %q", out, err, want)
	}
}
