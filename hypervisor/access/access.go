// Package access gives a machine's user access to files of the host for the
// machine's lifetime, and takes it back: by POSIX access control lists, so
// that no file changes its owner, and none its mode for good. It says which
// machine has which disk, so that no two write to the same.
//
// What is given is noted in paths.Grants before it is given; the note exists
// as long as the machine holds anything. It knows nothing of how a machine
// runs; who calls it is root.
//
// While access is given, the group's bits of a file's mode show the list's
// mask (acl(5)): nobody else can do more than before.
package access

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// Refusal is why a machine cannot have a file. Key is the definition's key
// that names the file.
type Refusal struct {
	Key  string
	Text string
}

func (r Refusal) Error() string { return r.Key + ": " + r.Text }

// hold is what a machine holds: the content of paths.Grants.
type hold struct {
	UID    uint32  `json:"uid"`
	Disks  []disk  `json:"disks,omitempty"`
	Grants []grant `json:"grants,omitempty"`
}

// disk is a disk that the machine has.
type disk struct {
	inode
	Write     bool   `json:"write,omitempty"`
	Shareable bool   `json:"shareable,omitempty"`
	Key       string `json:"key,omitempty"` // that names it
}

// grant is access to one file or directory.
type grant struct {
	inode
	Path string `json:"path"`
	Perm perm   `json:"perm"`
	// Keys are those of the files for which it is given.
	Keys []string `json:"keys,omitempty"`
	// Prior is the file's list before any machine was given access.
	Prior acl `json:"prior"`
}

// User is who is given access.
type User struct{ UID, GID uint32 }

// Take gives a machine's user access to files, and notes that the machine has
// those that are disks. All is given, or, where there are refusals or an error,
// nothing. What the machine held before, because it was not taken back, is
// taken back first.
//
// inspect is called for each file, opened for reading; its error refuses the
// file.
func Take(paths config.Paths, vm string, user User, files []hypervisor.File, inspect func(hypervisor.File, *os.File) error) ([]Refusal, error) {
	unlock, err := lock(paths)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := giveBack(paths, vm); err != nil {
		return nil, err
	}
	giveBackLeft(paths)
	t := taking{paths: paths, vm: vm, user: user, hold: hold{UID: user.UID}, nodes: map[inode]node{}}
	defer t.close()
	if t.others, err = runningHolds(paths, vm); err != nil {
		return nil, err
	}
	var refusals []Refusal
	for _, f := range files {
		if err := t.add(f, inspect); err != nil {
			refusals = append(refusals, Refusal{f.Key, err.Error()})
		}
	}
	if len(refusals) > 0 {
		return refusals, nil
	}
	if err := t.prior(); err != nil {
		return nil, err
	}
	if len(t.hold.Disks)+len(t.hold.Grants) == 0 {
		return nil, nil
	}
	if err := writeHold(paths, vm, t.hold); err != nil {
		return nil, err
	}
	if err := t.apply(); err != nil {
		return nil, errors.Join(err, giveBack(paths, vm))
	}
	return nil, nil
}

// GiveBack takes back what a machine was given by [Take]. It is no error when
// that is nothing.
func GiveBack(paths config.Paths, vm string) error {
	unlock, err := lock(paths)
	if err != nil {
		return err
	}
	defer unlock()
	giveBackLeft(paths)
	return giveBack(paths, vm)
}

// giveBackLeft takes back what machines hold that do not run any more, and whose
// end nobody saw: the host crashed, or the clean-up was killed with them (from
// systemd 257 on, systemctl kill --signal=KILL does that on some kernels). What
// cannot be taken back is tried again the next time, and by the machine itself.
func giveBackLeft(paths config.Paths) {
	entries, err := os.ReadDir(paths.State)
	if err != nil {
		return
	}
	for _, e := range entries {
		_, err := os.Lstat(paths.Grants(e.Name()))
		if err != nil {
			continue
		}
		if _, err := os.Lstat(paths.RuntimeDir(e.Name())); errors.Is(err, fs.ErrNotExist) {
			giveBack(paths, e.Name())
		}
	}
}

// lock keeps all others from giving and taking. It is the state directory's
// own lock, so it ends with the process.
func lock(paths config.Paths) (unlock func(), err error) {
	dir, err := os.Open(paths.State)
	if err != nil {
		return nil, err
	}
	if err := Flock(dir, unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", paths.State, err)
	}
	return func() { dir.Close() }, nil
}

// taking is one call of Take.
type taking struct {
	paths  config.Paths
	vm     string
	user   User
	others map[string]hold // of the other machines that run
	hold   hold            // what will be noted
	routes []route
	nodes  map[inode]node // of each grant
}

func (t *taking) close() {
	for _, r := range t.routes {
		r.close()
	}
}

// add checks one file and adds what it takes to the hold.
func (t *taking) add(f hypervisor.File, inspect func(hypervisor.File, *os.File) error) error {
	r, err := open(f.Path)
	if err != nil {
		return describe(f.Path, err)
	}
	t.routes = append(t.routes, r)
	file := r.file()
	if err := t.check(f, file, inspect); err != nil {
		return err
	}
	want := permOf(f)
	if file.kind() == unix.S_IFDIR {
		want |= execute
	}
	if err := t.want(f.Key, file, want); err != nil {
		return err
	}
	for _, dir := range r[:len(r)-1] {
		if err := t.want(f.Key, dir, execute); err != nil {
			return err
		}
	}
	return nil
}

// check refuses a file that the machine cannot have, and notes one that is a disk.
func (t *taking) check(f hypervisor.File, file node, inspect func(hypervisor.File, *os.File) error) error {
	if err := checkKind(f, file); err != nil {
		return err
	}
	if f.Disk {
		if err := t.addDisk(f, file); err != nil {
			return err
		}
	}
	if kind := file.kind(); kind != unix.S_IFDIR && kind != unix.S_IFSOCK && kind != unix.S_IFCHR {
		return examine(f, file, inspect)
	}
	return nil
}

// permOf is the access that a file is wanted with.
func permOf(f hypervisor.File) perm {
	if f.Write {
		return read | write
	}
	return read
}

// examine gives the file to inspect.
func examine(f hypervisor.File, file node, inspect func(hypervisor.File, *os.File) error) error {
	flags := 0
	if f.Disk && f.Write && file.kind() == unix.S_IFBLK {
		flags = unix.O_EXCL // fails for what the host itself uses
	}
	data, err := file.data(flags)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is in use by the host (mounted, or part of a volume group or RAID)", f.Path)
	}
	if err != nil {
		return describe(f.Path, err)
	}
	defer data.Close()
	if f.Disk {
		if lock := lockElsewhere(data, f); lock != nil && (f.Write || !onlyReads(lock)) {
			return fmt.Errorf("%s is in use by %s", f.Path, cmp.Or(holder(file.inode()), "another process"))
		}
	}
	return inspect(f, data)
}

// checkKind refuses what is no file to read.
func checkKind(f hypervisor.File, n node) error {
	want := "a file"
	switch {
	case f.Disk:
		want = "a file or block device"
	case f.Socket:
		want = "a socket"
	case f.Device:
		want = "a device"
	}
	switch n.kind() {
	case unix.S_IFREG:
		if f.Socket || f.Device {
			return fmt.Errorf("want %s, %s is a file", want, f.Path)
		}
		return nil
	case unix.S_IFBLK:
		if f.Disk {
			return nil
		}
		return fmt.Errorf("want %s, %s is a block device", want, f.Path)
	case unix.S_IFDIR:
		return fmt.Errorf("want %s, %s is a directory", want, f.Path)
	case unix.S_IFIFO:
		return fmt.Errorf("want %s, %s is a FIFO", want, f.Path)
	case unix.S_IFSOCK:
		if f.Socket {
			return nil
		}
		return fmt.Errorf("want %s, %s is a socket", want, f.Path)
	default:
		if f.Device {
			return nil
		}
		return fmt.Errorf("want %s, %s is a character device", want, f.Path)
	}
}

// addDisk notes a disk, unless another machine has it.
func (t *taking) addDisk(f hypervisor.File, n node) error {
	d := disk{n.inode(), f.Write, f.Shareable, f.Key}
	if n.kind() == unix.S_IFBLK {
		d.inode = inode{0, n.stat.Rdev} // several nodes may be the same device
	}
	for _, vm := range sortedNames(t.others) {
		for _, other := range t.others[vm].Disks {
			if d.conflicts(other) {
				return fmt.Errorf("%s is in use by vm@%s", f.Path, vm)
			}
		}
	}
	if slices.ContainsFunc(t.hold.Disks, d.conflicts) {
		return fmt.Errorf("%s is another disk of this machine already", f.Path)
	}
	t.hold.Disks = append(t.hold.Disks, d)
	return nil
}

func (d disk) conflicts(o disk) bool {
	return d.inode == o.inode && (d.Write || o.Write) && !(d.Shareable && o.Shareable)
}

// want adds a grant of p for the file that key names, if the user cannot do that
// already.
func (t *taking) want(key string, n node, p perm) error {
	a, err := readACL(n.fd, n.stat.Mode)
	noACL := errors.Is(err, unix.EOPNOTSUPP)
	if noACL {
		a = fromMode(n.stat.Mode)
	} else if err != nil {
		return describe(n.path, err)
	}
	i := slices.IndexFunc(t.hold.Grants, func(g grant) bool { return g.inode == n.inode() })
	if i < 0 && a.allows(n.stat.Uid, n.stat.Gid, t.user.UID, t.user.GID, p) {
		return nil
	}
	if noACL {
		return fmt.Errorf("the machine's user may not %s %s, and its file system has no access control lists by which to allow it", p, n.path)
	}
	if i < 0 {
		i = len(t.hold.Grants)
		t.hold.Grants = append(t.hold.Grants, grant{inode: n.inode(), Path: n.path, Prior: a})
	}
	t.nodes[n.inode()] = n
	t.hold.Grants[i].Perm |= p
	if !slices.Contains(t.hold.Grants[i].Keys, key) {
		t.hold.Grants[i].Keys = append(t.hold.Grants[i].Keys, key)
	}
	return nil
}

// prior finds, for each grant, what the list was before any machine of ours
// was given access to the same file.
func (t *taking) prior() error {
	for i, g := range t.hold.Grants {
		if !slices.ContainsFunc(g.Prior, func(e entry) bool { return e.Tag == tagUser }) {
			continue // so nobody was
		}
		all, err := allHolds(t.paths, t.vm)
		if err != nil {
			return err
		}
		if others, prior := grantsOf(all, g.inode); len(others) > 0 && slices.Equal(g.Prior, prior.with(others...)) {
			t.hold.Grants[i].Prior = prior
		}
	}
	return nil
}

// apply gives all that is noted and was not given before.
func (t *taking) apply() error {
	for _, g := range t.hold.Grants {
		n, ok := t.nodes[g.inode]
		if !ok {
			continue
		}
		now, err := readACL(n.fd, n.stat.Mode)
		if err != nil {
			return describe(n.path, err)
		}
		if err := writeACL(n.fd, now.with(entry{tagUser, g.Perm, t.hold.UID})); err != nil {
			return fmt.Errorf("let the machine's user %s %s: %w", g.Perm, n.path, err)
		}
	}
	return nil
}

// giveBack takes back all that is noted, then the note. What cannot be taken
// back stays noted.
func giveBack(paths config.Paths, vm string) error {
	h, err := readHold(paths, vm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	var left []grant
	for _, g := range h.Grants {
		if err := g.revoke(paths, vm, h.UID); err != nil {
			errs = append(errs, fmt.Errorf("take back access to %s: %w", g.Path, err))
			left = append(left, g)
		}
	}
	if len(left) > 0 {
		h.Grants, h.Disks = left, nil
		return errors.Join(append(errs, writeHold(paths, vm, h))...)
	}
	return os.Remove(paths.Grants(vm))
}

// revoke takes back one grant: where nobody else has changed the list, by what
// it was before.
func (g grant) revoke(paths config.Paths, vm string, uid uint32) error {
	r, err := open(g.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone, and the access with it
	}
	if err != nil {
		return err
	}
	defer r.close()
	n := r.file()
	now, err := readACL(n.fd, n.stat.Mode)
	if err != nil {
		return err
	}
	want := now.without(uid)
	own := entry{tagUser, g.Perm, uid}
	if n.inode() == g.inode {
		all, err := allHolds(paths, vm)
		if err != nil {
			return err
		}
		others, _ := grantsOf(all, g.inode)
		switch {
		case !slices.Equal(now, g.Prior.with(append(others, own)...)):
			// Somebody changed it meanwhile: keep that.
		case len(others) == 0:
			want = g.Prior
		default:
			want = g.Prior.with(others...)
		}
	}
	if slices.Equal(now, want) {
		return nil
	}
	return writeACL(n.fd, want)
}

// grantsOf returns what users of other machines were given on a file, and its
// list before.
func grantsOf(all map[string]hold, file inode) (given []entry, prior acl) {
	for _, vm := range sortedNames(all) {
		for _, g := range all[vm].Grants {
			if g.inode == file {
				given = append(given, entry{tagUser, g.Perm, all[vm].UID})
				prior = g.Prior
			}
		}
	}
	return given, prior
}

// runningHolds are the holds of the other machines that run: their runtime
// directory exists. After a crash of the host there may be notes of others.
func runningHolds(paths config.Paths, but string) (map[string]hold, error) {
	return holds(paths, paths.Runtime, but)
}

// allHolds are the holds of all other machines.
func allHolds(paths config.Paths, but string) (map[string]hold, error) {
	return holds(paths, paths.State, but)
}

// holds are the holds of the machines for which dir has a directory.
func holds(paths config.Paths, dir, but string) (map[string]hold, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	all := map[string]hold{}
	for _, e := range entries {
		if e.Name() == but || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		h, err := readHold(paths, e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all[e.Name()] = h
	}
	return all, nil
}

func readHold(paths config.Paths, vm string) (hold, error) {
	var h hold
	b, err := os.ReadFile(paths.Grants(vm))
	if err == nil && len(b) == 0 {
		// What a crash of the host left of a note that was not durable.
		err = fs.ErrNotExist
	}
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("%s: %w", paths.Grants(vm), err)
	}
	return h, nil
}

// writeHold replaces the note. One of access given is on the disk itself
// before the access is: after a crash of the host it has to be known what is to
// be taken back. Of disks it need not be, since nothing runs then.
func writeHold(paths config.Paths, vm string, h hold) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return WriteFile(paths.Grants(vm), b, 0o600, len(h.Grants) > 0)
}

// WriteFile replaces a file of root's in a directory of root's, whole or not
// at all; with durable, before it returns, for good.
func WriteFile(path string, content []byte, mode os.FileMode, durable bool) error {
	return put(path, content, owner{mode: mode}, durable, os.Rename)
}

// ReplaceFile is [WriteFile] for good, by which owner and mode stay those of
// before.
func ReplaceFile(path string, content []byte, before os.FileInfo) error {
	o := owner{mode: before.Mode().Perm()}
	if s, ok := before.Sys().(*syscall.Stat_t); ok && (int(s.Uid) != os.Geteuid() || int(s.Gid) != os.Getegid()) {
		o.set, o.uid, o.gid = true, int(s.Uid), int(s.Gid)
	}
	return put(path, content, o, true, os.Rename)
}

// owner is whose a new file is to be, where that is not the caller.
type owner struct {
	mode     os.FileMode
	set      bool
	uid, gid int
}

// CreateFile is [WriteFile] for a file that must not be there: the error is
// fs.ErrExist where it is.
func CreateFile(path string, content []byte, mode os.FileMode, durable bool) error {
	return put(path, content, owner{mode: mode}, durable, os.Link)
}

// RemoveUnwritten removes what is left of a [WriteFile] to path that was killed. The
// caller keeps others from writing it meanwhile.
func RemoveUnwritten(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+filepath.Base(path)+".") {
			errs = append(errs, os.Remove(filepath.Join(filepath.Dir(path), e.Name())))
		}
	}
	return errors.Join(errs...)
}

// put writes a file beside its place, and has move bring it there.
func put(path string, content []byte, o owner, durable bool, move func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(f.Name()) // gone already if all went well
	if _, err := f.Write(content); err != nil {
		return err
	}
	if o.set {
		if err := f.Chown(o.uid, o.gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(o.mode); err != nil {
		return err
	}
	if durable {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	// Whoever watches the place sees it change once.
	if err := f.Close(); err != nil {
		return err
	}
	if err := move(f.Name(), path); err != nil {
		return err
	}
	if durable {
		return SyncDir(filepath.Dir(path))
	}
	return nil
}

// Flock locks an open file (flock(2)); the error is EWOULDBLOCK where how has
// LOCK_NB and somebody else has the lock.
func Flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// LockFile waits for the lock of a file, which is made where it is not there;
// how is unix.LOCK_EX or LOCK_SH. Nobody but its owner opens the file: who has it
// open can keep everybody waiting.
func LockFile(path string, how int) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := Flock(file, how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	return func() { file.Close() }, nil
}

// IsThere says whether there is a file of any kind, a dangling link too.
func IsThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// SyncDir has what was done to the names in a directory survive a crash of the
// host.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func (p perm) String() string {
	switch {
	case p == execute:
		return "search"
	case p&write != 0:
		return "write to"
	default:
		return "read"
	}
}

// describe makes one sentence of an error about a file.
func describe(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", path)
	case errors.Is(err, unix.ENOMEDIUM):
		return fmt.Errorf("%s has no medium", path)
	}
	var p *fs.PathError
	if errors.As(err, &p) && p.Path == path {
		err = p.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

func sortedNames(all map[string]hold) []string {
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ReadFile reads a regular file of at most limit bytes whose content a machine
// is given. As for the files that a machine opens itself, a symbolic link that
// belongs to somebody else than root leads only to what belongs to the same
// user. Anything else than a regular file is an error, not a wait without end.
func ReadFile(path string, limit int64) ([]byte, error) {
	r, err := open(path)
	if err != nil {
		return nil, describe(path, err)
	}
	defer r.close()
	if err := checkKind(hypervisor.File{Path: path}, r.file()); err != nil {
		return nil, err
	}
	f, err := r.file().data(0)
	if err != nil {
		return nil, describe(path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: want at most %d bytes", path, limit)
	}
	return b, err
}

// MayRead says why a user cannot read a file without being given access.
func MayRead(path string, user User) error {
	r, err := open(path)
	if err != nil {
		return describe(path, err)
	}
	defer r.close()
	p, n, err := r.refused(user)
	if err == nil && n != nil {
		err = fmt.Errorf("the machine's user may not %s %s", p, n.path)
	}
	return err
}

// refused is the first part of a route that a user may not search or read, nil
// where there is none, and what it may not.
func (r route) refused(user User) (perm, *node, error) {
	for i, n := range r {
		p := execute
		if i == len(r)-1 {
			p = read
		}
		a, err := readACL(n.fd, n.stat.Mode)
		if errors.Is(err, unix.EOPNOTSUPP) {
			a = fromMode(n.stat.Mode)
		} else if err != nil {
			return 0, nil, describe(n.path, err)
		}
		if !a.allows(n.stat.Uid, n.stat.Gid, user.UID, user.GID, p) {
			return p, &n, nil
		}
	}
	return 0, nil, nil
}

// Open opens a disk image or block device for reading. As for the files that a
// machine opens itself, a symbolic link that belongs to somebody else than root
// leads only to what belongs to the same user. The name of the file is where it
// lies, whatever links led there.
func Open(path string) (*os.File, error) { return openImage(path, nil) }

// OpenAs is [Open] for a path that a user has written: it refuses what that user
// may not read.
func OpenAs(path string, user User) (*os.File, error) { return openImage(path, &user) }

func openImage(path string, user *User) (*os.File, error) {
	r, err := open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: unix.ENOENT}
	}
	if err != nil {
		return nil, describe(path, err)
	}
	defer r.close()
	if err := checkKind(hypervisor.File{Path: path, Disk: true}, r.file()); err != nil {
		return nil, err
	}
	if user != nil {
		p, n, err := r.refused(*user)
		if err != nil {
			return nil, err
		}
		if n != nil {
			return nil, &NotReadableError{UID: user.UID, What: p.String(), Path: n.path}
		}
	}
	f, err := r.file().data(0)
	if err != nil {
		return nil, describe(path, err)
	}
	return f, nil
}

// NotReadableError is a file that a user may not read.
type NotReadableError struct {
	UID  uint32
	What string // "read" or "search"
	Path string // the file, or a directory above it
}

func (e *NotReadableError) Error() string {
	return fmt.Sprintf("user %d may not %s %s", e.UID, e.What, e.Path)
}
