package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// draftOptions are the flags that say what a new definition has. Each becomes a
// key of it when it is read, and is refused as the key's value would be.
type draftOptions struct {
	draft *config.Draft
	nics  int
	noNIC bool
	ports bool   // --forward
	below string // --template, which may have cards
	// parameters are those of the template, NAME=VALUE: what type a value has to be
	// is known once all flags are.
	parameters []string
}

// get is the definition so far. It begins with the first flag: other commands
// have no use for the schema.
func (o *draftOptions) get() *config.Draft {
	if o.draft == nil {
		o.draft = config.NewDraft()
	}
	return o.draft
}

// settingFlag is a flag that sets keys of a definition.
type settingFlag struct {
	typ string
	set func(text string) error
}

// String, Set and Type make a settingFlag a pflag.Value.
func (f settingFlag) String() string        { return "" }
func (f settingFlag) Set(text string) error { return f.set(text) }
func (f settingFlag) Type() string          { return f.typ }

// key is a flag of the value of one key.
func (o *draftOptions) key(flags *pflag.FlagSet, name, typ, key, usage string) {
	flags.Var(settingFlag{typ, func(text string) error { return o.get().Set(key, text) }}, name, usage)
}

// file is a flag of the path of a file.
func (o *draftOptions) file(flags *pflag.FlagSet, name, key, usage string) {
	flags.Var(settingFlag{"FILE", func(text string) error {
		path, err := filepath.Abs(text)
		if err != nil {
			return err
		}
		return o.get().Set(key, path)
	}}, name, usage)
}

// addFlags adds the flags that create and run share. paths are asked for once
// something is to be completed.
func (o *draftOptions) addFlags(cmd *cobra.Command, paths func() config.Paths) {
	flags := cmd.Flags()
	flags.SortFlags = false
	o.key(flags, "cpus", "N", "cpus", "virtual CPUs")
	o.key(flags, "memory", "SIZE", "memory", "memory, e.g. 2G")
	o.key(flags, "disk", "SIZE", "disk.root.size", "size of the disk root, e.g. 20G: what an image is grown to, or a new empty disk")
	flags.Var(settingFlag{"NIC", o.setNIC}, "nic", "a card: user, none, network=NET, bridge=BRIDGE, tap=TAP …, with further keys after commas; again for the next one")
	flags.Var(settingFlag{"PORTS", o.setForward}, "forward", "give ports of the host to the guest, e.g. 2222:22, by the first card")
	o.key(flags, "hostname", "NAME", "cloud_init.hostname", "host name that cloud-init sets")
	flags.Var(settingFlag{"FILE|KEY", o.setKeys}, "ssh-key", "public key, or file of them, for the guest's user (cloud-init)")
	flags.Var(settingFlag{"FILE", o.setUserData}, "user-data", "file with user data for cloud-init; - reads it here")
	o.key(flags, "firmware", "NAME", "boot.firmware", "bios, uefi, none, or the absolute path of an image")
	o.file(flags, "kernel", "boot.kernel", "boot this kernel directly")
	o.file(flags, "initrd", "boot.initrd", "initial RAM disk for the kernel")
	o.key(flags, "cmdline", "TEXT", "boot.cmdline", "command line for the kernel")
	o.key(flags, "description", "TEXT", "description", "one line for people")
	flags.Var(settingFlag{"NAME", func(text string) error { return o.setKey("template=" + text) }}, "template", "begin with this template")
	flags.Var(settingFlag{"NAME=VALUE", func(text string) error { o.parameters = append(o.parameters, text); return nil }}, "param", "value for a parameter of the template; again for the next one")
	flags.Var(settingFlag{"KEY=VALUE", o.setKey}, "set", "any key of vmctl.toml(5), e.g. lifecycle.restart=no; again for the next one, or the next element of a list")
	for _, name := range []string{"cpus", "memory", "disk", "forward", "hostname", "cmdline", "description"} {
		// Only an unknown flag fails here and below.
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	_ = flags.SetAnnotation("ssh-key", keysHere, nil)
	_ = flags.SetAnnotation("user-data", stdinHere, nil)
	_ = cmd.RegisterFlagCompletionFunc("nic", completeNIC)
	_ = cmd.RegisterFlagCompletionFunc("firmware", cobra.FixedCompletions([]cobra.Completion{"bios", "uefi", "none"}, cobra.ShellCompDirectiveDefault))
	_ = cmd.RegisterFlagCompletionFunc("set", completeKeys)
	_ = cmd.RegisterFlagCompletionFunc("template", func(_ *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return namesIn(paths().TemplateDirs), cobra.ShellCompDirectiveNoFileComp
	})
	_ = cmd.RegisterFlagCompletionFunc("param", func(_ *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return completeParameters(paths(), o.below), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	})
}

// completeParameters completes the parameters of a template, as far as it can be
// read.
func completeParameters(paths config.Paths, template string) []cobra.Completion {
	t, _ := config.LoadTemplate(paths, template)
	var out []cobra.Completion
	for _, p := range t.Parameters {
		out = append(out, cobra.CompletionWithDesc(p.Name+"=", p.Description))
	}
	return out
}

// completeNIC completes what a card is plugged into.
func completeNIC(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all := []cobra.Completion{"user", "none", "bridge=", "tap="}
	for _, name := range namesIn(config.SystemPaths(os.Getenv("VMCTL_ROOT")).NetworkDirs) {
		all = append(all, "network="+name)
	}
	all = slices.DeleteFunc(all, func(c cobra.Completion) bool { return !strings.HasPrefix(c, prefix) })
	return all, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeKeys completes the keys of a definition, as far as they are fixed.
func completeKeys(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var out []cobra.Completion
	for _, k := range config.Keys() {
		if !strings.Contains(k.Key, "NAME") && strings.HasPrefix(k.Key, prefix) {
			out = append(out, cobra.CompletionWithDesc(k.Key+"=", k.Doc))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// setKey sets any key.
func (o *draftOptions) setKey(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		return errors.New("want KEY=VALUE")
	}
	if name, is := strings.CutPrefix(key, "parameters."); is {
		o.parameters = append(o.parameters, name+"="+value)
		return nil
	}
	if err := o.get().Set(key, value); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	parts := strings.Split(key, ".")
	if parts[0] == "nic" && slices.Contains([]string{"user", "network", "bridge", "tap", "macvtap", "vde", "vhost_user"}, parts[len(parts)-1]) {
		o.nics++
	}
	if key == "template" {
		o.below = value
	}
	return nil
}

// setParameters sets the values of the template's parameters.
func (o *draftOptions) setParameters(paths config.Paths) error {
	if len(o.parameters) == 0 {
		return nil
	}
	if o.below == "" {
		return usageError{errors.New("--param: want --template with it, whose parameters it sets")}
	}
	t, err := config.LoadTemplate(paths, o.below)
	if errors.Is(err, fs.ErrNotExist) {
		return templateNotFound(paths, o.below)
	}
	if err != nil {
		return err
	}
	if len(t.Problems) > 0 {
		return invalidFile(t.File, t.Problems)
	}
	for _, text := range o.parameters {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return usageError{fmt.Errorf("--param %s: want NAME=VALUE", text)}
		}
		i := slices.IndexFunc(t.Parameters, func(p config.Parameter) bool { return p.Name == name })
		if i < 0 {
			return withHint(usageError{fmt.Errorf("--param %s: no such parameter of the template %s", name, t.Name)}, "vmctl template show "+t.Name+" lists them")
		}
		if err := o.get().Give(t.Parameters[i], value); err != nil {
			return usageError{fmt.Errorf("--param %s: %w", name, err)}
		}
	}
	// What was typed, or is in a script for cloud-init, is no template.
	o.get().Literal()
	return nil
}

// setNIC adds a card: lan, then lan2 and so on.
func (o *draftOptions) setNIC(text string) error {
	parts := strings.Split(text, ",")
	if text == "none" {
		o.noNIC = true
		return nil
	}
	o.nics++
	table := "nic.lan"
	if o.nics > 1 {
		table = fmt.Sprintf("nic.lan%d", o.nics)
	}
	for i, part := range parts {
		key, value, ok := strings.Cut(part, "=")
		if i == 0 && part == "user" {
			key, value, ok = "user", "true", true
		}
		if !ok {
			return fmt.Errorf("want user, none or KEY=VALUE such as network=default, got %q", part)
		}
		if err := o.get().Set(table+"."+key, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func (o *draftOptions) setForward(text string) error {
	o.ports = true
	return o.get().Set("nic.lan.forward", text)
}

// setKeys adds public keys: one as it is, or those in a file.
func (o *draftOptions) setKeys(text string) error {
	keys, err := publicKeys(text)
	if err != nil {
		return err
	}
	for _, key := range keys {
		err := o.get().Set("cloud_init.ssh_keys", key)
		if err != nil && key != text {
			err = fmt.Errorf("%s: %w", text, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// publicKeys are one as it is, or those in a file.
func publicKeys(text string) ([]string, error) {
	if strings.ContainsAny(text, " \t") && !access.IsThere(text) {
		return []string{text}, nil
	}
	content, err := readSmall(text)
	if err != nil {
		return nil, err
	}
	if strings.Contains(content, "PRIVATE KEY") {
		return nil, fmt.Errorf("want a public key, %s is a private one: did you mean %s.pub?", text, text)
	}
	var keys []string
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key is in %s", text)
	}
	return keys, nil
}

// setUserData names a file, or where that is none that will be there at the next
// start, takes what it says.
func (o *draftOptions) setUserData(text string) error {
	info, err := os.Stat(text)
	switch {
	case text == "-":
		text = "/dev/stdin"
	case err != nil:
		return given(text, err)
	case info.Mode().IsRegular():
		path, err := filepath.Abs(text)
		if err != nil {
			return err
		}
		return o.get().Set("cloud_init.user_data", path)
	}
	content, err := readSmall(text)
	if err != nil {
		return err
	}
	if content == "" {
		return fmt.Errorf("no user data is in %s", text)
	}
	return o.get().Set("cloud_init.user_data", content)
}

// maxSmall is how much a definition can have of a file, in bytes.
const maxSmall = 512 << 10

// readSmall reads a file that goes into a definition.
func readSmall(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", given(file, err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(content) > maxSmall {
		err = fmt.Errorf("%s has more than %d bytes", file, maxSmall)
	}
	return string(content), err
}

// finish is the definition once all flags are read; card says that it has a
// card even if none was asked for.
func (o *draftOptions) finish(paths config.Paths, card bool) (*config.Draft, error) {
	if err := o.setParameters(paths); err != nil {
		return nil, err
	}
	switch {
	case o.noNIC && (o.nics > 0 || o.ports):
		return nil, usageError{errors.New("--nic none: want no other card and no --forward beside it")}
	case o.noNIC, o.nics > 0, o.below != "", !card && !o.ports:
		return o.get(), nil
	}
	return o.get(), o.get().Set("nic.lan.user", "true")
}

// definitionText is the file that a draft becomes.
func definitionText(who string, draft *config.Draft) string {
	text := "# Written by " + who + ". All keys: man vmctl.toml\n"
	if keys := draft.Text(); keys != "" {
		text += "\n" + keys
	}
	return text
}

// draftError is what is wrong with a definition that was refused before it was
// written: where it would have been is of no use to anybody.
func draftError(file string, problems []config.Problem) error {
	out := make([]config.Problem, len(problems))
	for i, p := range problems {
		if p.File == file {
			p.File, p.Line = "", 0
		}
		out[i] = p
	}
	return &invalidError{out}
}
