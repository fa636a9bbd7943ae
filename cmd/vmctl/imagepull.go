package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/image"
	"github.com/vmctl/vmctl/hypervisor/image/pull"
)

// pullOptions are the flags of vmctl image pull and import.
type pullOptions struct {
	name      string
	format    string
	checksum  string
	checksums string
	signature string
	key       string
	update    bool
	progress  bool
}

func (o *pullOptions) addFlags(cmd *cobra.Command, replace string) {
	flags := cmd.Flags()
	flags.StringVar(&o.name, "name", "", "store it by this `NAME`; default: by the short name, or that of the file")
	flags.StringVar(&o.format, "format", "", "refuse what is not of this format: qcow2, raw, vmdk, vdi, vpc or vhdx")
	flags.StringVar(&o.checksum, "checksum", "", "refuse what does not have this `CHECKSUM`, sha256:… or sha512:…")
	flags.BoolVar(&o.progress, "progress", false, progressUsage)
	flags.BoolVar(&o.update, replace, false, "replace the image of that name, if no disk stands on it")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(image.Formats, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("checksum", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
}

// request begins the request that the flags ask for.
func (o pullOptions) request() (pull.Request, error) {
	r := pull.Request{Name: o.name, Format: o.format, Checksums: o.checksums, Signature: o.signature, Update: o.update}
	if o.name != "" {
		if err := config.CheckImageName(o.name); err != nil {
			return r, usageError{fmt.Errorf("--name: %w", err)}
		}
	}
	if o.format != "" && !slices.Contains(image.Formats, o.format) {
		return r, usageError{fmt.Errorf("--format: want one of %s, got %s", strings.Join(image.Formats, ", "), o.format)}
	}
	if o.checksum != "" {
		sum, err := pull.ParseSum(o.checksum)
		if err != nil {
			return r, usageError{fmt.Errorf("--checksum: %w", err)}
		}
		r.Checksum = sum
	}
	if o.key != "" {
		keys, err := readKeys(config.Text(o.key))
		if err != nil {
			return r, fmt.Errorf("--key: %w", given(o.key, err))
		}
		r.Keys = keys
	}
	return r, nil
}

// maxKeys is how long a file with public keys may be, in bytes: those of all
// developers of a distribution are some megabytes.
const maxKeys = 64 << 20

// readKeys reads OpenPGP public keys, which are given as text or by the path of a
// file.
func readKeys(t config.Text) (*pull.Keys, error) {
	path, is := t.Path()
	if !is {
		return pull.ParseKeys("the text given", []byte(t))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeys))
	if err != nil {
		return nil, err
	}
	return pull.ParseKeys(path, b)
}

func newImagePullCommand(a *app) *cobra.Command {
	var opts pullOptions
	cmd := &cobra.Command{
		Use:   "pull NAME|URL...",
		Short: "Get images from their publishers",
		Long: `Get images from their publishers: by a short name, or from an http or https URL.
What comes is compared with the publisher's checksum, or that of --checksum;
what is compressed by xz, gzip or zstd is unpacked. A pull that was broken off
goes on where it was. An image that is stored already is left as it is; with
--update it is replaced by what the publisher has now.

With --key the list of checksums has to be signed by one of the OpenPGP keys in
that file: by the signature around it, or that of --signature. Without a list
--signature is that of the image itself.`,
		Example: `  vmctl image pull debian-13 ubuntu-24.04
  vmctl image pull --update debian-13
  vmctl image pull https://example.org/appliance.qcow2.xz --name appliance \
      --checksums https://example.org/SHA256SUMS \
      --signature https://example.org/SHA256SUMS.gpg --key ./publisher.asc`,
		Args:              someImages,
		ValidArgsFunction: a.completeSources,
		RunE:              func(cmd *cobra.Command, args []string) error { return runImagePull(cmd.Context(), a, opts, args) },
	}
	opts.addFlags(cmd, "update")
	cmd.Flags().StringVar(&opts.checksums, "checksums", "", "`URL` of a list of checksums such as SHA256SUMS")
	cmd.Flags().StringVar(&opts.signature, "signature", "", "`URL` of a signature of that list, or without one of the image")
	cmd.Flags().StringVar(&opts.key, "key", "", "`FILE` with the OpenPGP public keys, by one of which it has to be signed")
	_ = cmd.RegisterFlagCompletionFunc("checksums", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("signature", cobra.NoFileCompletions)
	return cmd
}

func newImageImportCommand(a *app) *cobra.Command {
	var opts pullOptions
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Store a copy of an image file of this host",
		Long: `Store a copy of an image file of this host, unpacked where it is compressed by
xz, gzip or zstd. The format is found out by its content, once. An image that
names other files, such as one with a backing file, is refused: machines would
be given those.`,
		Example: `  vmctl image import ./appliance.vmdk
  vmctl image import /srv/golden.qcow2 --name golden-2025 --checksum sha256:…`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("want one file, got %d arguments", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runImageImport(cmd.Context(), a, opts, args[0]) },
	}
	opts.addFlags(cmd, "replace")
	return cmd
}

// progressUsage is the help of the flag --progress.
const progressUsage = "with -o json: lines of JSON on stderr that tell how far it is"

// pulled is one image in vmctl image pull -o json.
type pulled struct {
	image.Image
	File  string `json:"file"`
	Fresh bool   `json:"fresh"` // it was not stored before
}

func runImagePull(ctx context.Context, a *app, opts pullOptions, args []string) error {
	if len(args) > 1 && (opts.name != "" || opts.checksum != "" || opts.checksums != "" || opts.signature != "") {
		return usageError{errors.New("want one image with --name, --checksum, --checksums or --signature, got several")}
	}
	if opts.key != "" {
		path, err := filepath.Abs(opts.key)
		if err != nil {
			return err
		}
		opts.key = path
	}
	var requests []pull.Request
	for _, arg := range args {
		r, err := a.pullRequest(opts, arg)
		if err != nil {
			return err
		}
		requests = append(requests, r)
	}
	all := []pulled{}
	var errs []error
	for _, r := range requests {
		i, fresh, err := a.pull(ctx, r, opts.progress)
		if err != nil {
			err = pullError(r, err)
			a.ui.errorf(err)
			errs = append(errs, err)
			continue
		}
		all = append(all, pulled{i, a.paths.Image(i.Name), fresh})
		if fresh {
			a.tellStored(i)
		} else {
			a.ui.printf("%s: is stored already", i.Name)
		}
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(all); err != nil {
			return err
		}
	}
	return worst(errs)
}

func (a *app) tellStored(i image.Image) {
	checked := "no checksum to compare it with"
	if i.Checksum != "" {
		algorithm, _, _ := strings.Cut(i.Checksum, ":")
		checked = algorithm + " is right"
	}
	if i.SignedBy != "" {
		checked += ", signed by " + i.SignedBy
	}
	a.ui.printf("%s: stored, %s, %s (%s in the store), %s", i.Name, i.Format, sizeText(i.VirtualSize), sizeText(i.FileSize), checked)
}

// pullRequest understands an argument of vmctl image pull.
func (a *app) pullRequest(opts pullOptions, arg string) (pull.Request, error) {
	r, err := opts.request()
	if err != nil {
		return r, err
	}
	if strings.Contains(arg, "://") {
		if !strings.HasPrefix(arg, "https://") && !strings.HasPrefix(arg, "http://") {
			return r, usageError{fmt.Errorf("want a short name or an http or https URL, got %s", arg)}
		}
		r.URL = arg
		if r, err = named(r, arg); err == nil {
			err = checkSigned(opts, r)
		}
		return r, err
	}
	for _, s := range a.imageSources() {
		if s.Name != arg {
			continue
		}
		r.URL = s.URL
		if r.Name == "" {
			r.Name = s.Name
		}
		if r, err = withSource(r, s); err == nil {
			err = checkSigned(opts, r)
		}
		return r, err
	}
	return r, a.sourceNotFound(arg)
}

// withSource adds to a request how the table says that the image is checked, as
// far as flags do not say it.
func withSource(r pull.Request, s config.ImageSource) (pull.Request, error) {
	var err error
	if r.Checksum == (pull.Sum{}) && r.Checksums == "" && s.Checksum != "" {
		if r.Checksum, err = pull.ParseSum(s.Checksum); err != nil {
			return r, fmt.Errorf("%s.checksum: %w", s.Name, err)
		}
	}
	if r.Signature == "" && r.Checksums == "" {
		r.Signature = s.Signature
	}
	if r.Checksums == "" {
		r.Checksums = s.Checksums
	}
	if r.Keys == nil && s.Key != "" {
		if r.Keys, err = readKeys(s.Key); err != nil {
			return r, fmt.Errorf("%s.key: %w", s.Name, err)
		}
	}
	return r, nil
}

// checkSigned refuses a key without anything that could be signed by it, and a
// signature without a key.
func checkSigned(o pullOptions, r pull.Request) error {
	switch {
	case r.Keys != nil && r.Checksums == "" && r.Signature == "":
		return usageError{errors.New("--key: want --checksums with the URL of a signed list, or --signature with that of a signature")}
	case r.Keys == nil && o.signature != "":
		return usageError{errors.New("--signature: want --key with the keys by which it may be")}
	}
	return nil
}

// sourceNotFound is the error for a short name that no table has.
func (a *app) sourceNotFound(name string) error {
	if strings.ContainsRune(name, filepath.Separator) || access.IsThere(name) {
		return withHint(usageError{fmt.Errorf("want a short name or an http or https URL, got the file %s", name)}, "vmctl image import "+name+" stores it")
	}
	e := &notFoundError{Kind: "image that can be pulled", Name: name, Hint: "vmctl image list --available shows them; a URL is as good"}
	var names, versions []string
	for _, s := range a.imageSources() {
		names = append(names, s.Name)
		if strings.HasPrefix(s.Name, name+"-") {
			versions = append(versions, s.Name)
		}
	}
	if len(versions) > 0 {
		e.Hint = "did you mean \"" + strings.Join(versions, `" or "`) + "\"?"
	} else if near := nearest(name, names); near != "" {
		e.Hint = didYouMean(near)
	}
	return e
}

// named names a request after its file, where --name does not.
func named(r pull.Request, file string) (pull.Request, error) {
	if r.Name != "" {
		return r, nil
	}
	name := config.ImageName(file)
	if err := config.CheckImageName(name); err != nil {
		return r, withHint(usageError{fmt.Errorf("name of the image: %w", err)}, "--name gives it another")
	}
	r.Name = name
	return r, nil
}

func runImageImport(ctx context.Context, a *app, opts pullOptions, file string) error {
	r, err := opts.request()
	if err != nil {
		return err
	}
	if err := isGiven(file); err != nil {
		return err
	}
	r.File = file
	if r, err = named(r, file); err != nil {
		return err
	}
	i, fresh, err := a.pull(ctx, r, opts.progress)
	if err != nil {
		return pullError(r, err)
	}
	if !fresh {
		return withHint(&stateError{fmt.Errorf("import %s: an image of the name %s is stored already", file, i.Name)}, "--name gives it another, --replace puts it in its place")
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(pulled{i, a.paths.Image(i.Name), fresh})
	}
	a.tellStored(i)
	return nil
}

// pullError says what was pulled, and what to do where disks are in the way.
func pullError(r pull.Request, err error) error {
	verb, replace := "pull", "--update"
	if r.File != "" {
		verb, replace = "import", "--replace"
	}
	if used, ok := errors.AsType[*image.InUseError](err); ok {
		return withHint(&stateError{fmt.Errorf("%s %s: %w", verb, r.Name, used)}, "--name stores the new one beside it")
	}
	if stored, ok := errors.AsType[*pull.StoredError](err); ok {
		return withHint(&stateError{fmt.Errorf("%s %s: %w", verb, r.Name, stored)}, replace+" replaces it, --name stores the new one beside it")
	}
	if _, ok := errors.AsType[*pull.SignatureError](err); ok {
		return withHint(fmt.Errorf("%s %s: %w", verb, r.Name, err), "nothing is stored; the publisher's own pages tell by which key it should be")
	}
	if _, ok := errors.AsType[*pull.ChecksumError](err); ok && r.Checksums != "" {
		return withHint(fmt.Errorf("%s %s: %w", verb, r.Name, err), "the publisher may be putting a new one in place just now: try again later")
	}
	if errors.Is(err, fs.ErrNotExist) && r.File != "" {
		return withHint(fmt.Errorf("%s: %w", verb, err), "vmctl image pull takes short names and URLs")
	}
	return fmt.Errorf("%s %s: %w", verb, r.Name, err)
}

// pull does a request and shows how far it is; errors reach systemd too, where a
// unit does this.
func (a *app) pull(ctx context.Context, r pull.Request, progress bool) (image.Image, bool, error) {
	p := a.puller()
	shown := pullProgress{ui: a.ui, name: r.Name, json: progress, printed: time.Now()}
	p.Progress = shown.report
	i, fresh, err := p.Pull(ctx, r)
	a.ui.clearLine()
	if err != nil {
		notifyStatus(r.Name + ": " + err.Error())
	}
	return i, fresh, err
}

// How often progress is shown on a terminal, told to systemd, and printed
// elsewhere.
const (
	drawStep   = 100 * time.Millisecond
	notifyStep = time.Second
	printStep  = 10 * time.Second
)

// pullProgress shows the progress of one pull.
type pullProgress struct {
	ui                       *ui
	name                     string
	json                     bool // told to a program too
	phase                    pull.Phase
	drawn, notified, printed time.Time
}

// pullProgressJSON is a line of --progress. The names of its fields stay.
type pullProgressJSON struct {
	Name       string     `json:"name"`
	Phase      pull.Phase `json:"phase"`
	DoneBytes  int64      `json:"done_bytes"`
	TotalBytes int64      `json:"total_bytes"`           // 0 where that is not known
	Rate       int64      `json:"rate_bytes_per_second"` // 0 where that is not known yet
}

func (s *pullProgress) report(p pull.Progress) {
	now := time.Now()
	fresh := p.Phase != s.phase
	s.phase = p.Phase
	line := s.name + ": " + printable(p.String())
	if fresh || now.Sub(s.notified) >= notifyStep {
		s.notified = now
		notifyStatus(line)
	}
	switch {
	case s.ui.format == jsonFormat:
		if s.json && (fresh || now.Sub(s.drawn) >= drawStep) {
			s.drawn = now
			s.ui.tellProgress(pullProgressJSON{s.name, p.Phase, p.Done, p.Total, p.Rate})
		}
	case isTerminal(s.ui.err):
		if fresh || now.Sub(s.drawn) >= drawStep {
			s.drawn = now
			s.ui.drawLine(line)
		}
	case now.Sub(s.printed) >= printStep, fresh && (p.Phase == pull.Waiting || p.Phase == pull.Retrying):
		s.printed = now
		s.ui.notef("%s", line)
	}
}

// notifyStatus tells systemd, where it has started us, what systemctl status
// shows.
func notifyStatus(text string) {
	// Where nobody wants to know there is no error, and where somebody does and
	// cannot be told, the work goes on.
	_, _ = daemon.SdNotify(false, "STATUS="+strings.Join(strings.Fields(text), " "))
}
