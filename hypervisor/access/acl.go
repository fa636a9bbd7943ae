package access

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// tag is what an entry of an access control list is about. The values are the
// kernel's (include/uapi/linux/posix_acl.h).
type tag uint16

const (
	tagOwner  tag = 0x01
	tagUser   tag = 0x02
	tagGroup  tag = 0x04 // the file's group
	tagGroups tag = 0x08 // another group
	tagMask   tag = 0x10
	tagOther  tag = 0x20
)

// noID is the ID of entries that are about nobody by name.
const noID = 0xffffffff

// perm is what may be done, in the bits of a file's mode.
type perm uint16

const (
	read    perm = 4
	write   perm = 2
	execute perm = 1 // of directories: search
)

// entry is one line of an access control list.
type entry struct {
	Tag  tag    `json:"tag"`
	Perm perm   `json:"perm"`
	ID   uint32 `json:"id"`
}

// acl is a POSIX access control list (acl(5)), in the kernel's order: by tag,
// then by id.
type acl []entry

const (
	xattrACL   = "system.posix_acl_access"
	aclVersion = 2
	entrySize  = 8 // bytes
)

// readACL returns the list of the open file fd, whose mode is given: where it
// has none, the list that means the same as the mode. The error is EOPNOTSUPP
// where the file system has no lists.
func readACL(fd int, mode uint32) (acl, error) {
	buf := make([]byte, 1<<16) // XATTR_SIZE_MAX
	n, err := unix.Getxattr(procPath(fd), xattrACL, buf)
	if errors.Is(err, unix.ENODATA) {
		return fromMode(mode), nil
	}
	if err != nil {
		return nil, err
	}
	return parseACL(buf[:n])
}

// writeACL sets the list of the open file fd. A list that a mode can express
// becomes that mode, and the file has no list any more.
func writeACL(fd int, a acl) error {
	return unix.Setxattr(procPath(fd), xattrACL, a.bytes(), 0)
}

// procPath is a path to an open file, which may be open with O_PATH: the calls
// for extended attributes take no such descriptor.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func parseACL(b []byte) (acl, error) {
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != aclVersion || (len(b)-4)%entrySize != 0 {
		return nil, errors.New("access control list of unknown form")
	}
	var a acl
	for e := range slices.Chunk(b[4:], entrySize) {
		a = append(a, entry{
			Tag:  tag(binary.LittleEndian.Uint16(e)),
			Perm: perm(binary.LittleEndian.Uint16(e[2:])),
			ID:   binary.LittleEndian.Uint32(e[4:]),
		})
	}
	return a.sorted(), nil
}

func (a acl) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, uint16(e.Tag))
		b = binary.LittleEndian.AppendUint16(b, uint16(e.Perm))
		b = binary.LittleEndian.AppendUint32(b, e.ID)
	}
	return b
}

func fromMode(mode uint32) acl {
	return acl{
		{tagOwner, perm(mode >> 6 & 7), noID},
		{tagGroup, perm(mode >> 3 & 7), noID},
		{tagOther, perm(mode & 7), noID},
	}
}

func (a acl) sorted() acl {
	slices.SortStableFunc(a, func(x, y entry) int { return cmp.Or(cmp.Compare(x.Tag, y.Tag), cmp.Compare(x.ID, y.ID)) })
	return a
}

// index is where the entry is, or -1.
func (a acl) index(t tag, id uint32) int {
	return slices.IndexFunc(a, func(e entry) bool { return e.Tag == t && e.ID == id })
}

// mask is what everybody but the owner and the others may do at most.
func (a acl) mask() perm {
	if i := a.index(tagMask, noID); i >= 0 {
		return a[i].Perm
	}
	return read | write | execute
}

// with returns a list by which the users of given may do what is said there,
// and everybody else exactly what they may by a: where the mask has to be
// widened, what it held back is taken from the entries themselves.
func (a acl) with(given ...entry) acl {
	mask := a.mask()
	var out acl
	all := perm(0)
	for _, e := range a {
		if e.Tag == tagMask {
			continue
		}
		if e.Tag == tagUser || e.Tag == tagGroup || e.Tag == tagGroups {
			e.Perm &= mask
			all |= e.Perm
		}
		out = append(out, e)
	}
	for _, g := range given {
		if i := out.index(g.Tag, g.ID); i >= 0 {
			out[i].Perm |= g.Perm
		} else {
			out = append(out, g)
		}
		all |= g.Perm
	}
	return append(out, entry{tagMask, all, noID}).sorted()
}

// without returns a without its entry for a user, and without the mask where
// no other entry needs one. It is for a list that somebody else has changed
// since [acl.with] made it.
func (a acl) without(uid uint32) acl {
	return a.drop(func(e entry) bool { return e.Tag == tagUser && e.ID == uid })
}

// withoutGroups is [acl.without] for all groups but the file's own.
func (a acl) withoutGroups() acl {
	return a.drop(func(e entry) bool { return e.Tag == tagGroups })
}

func (a acl) drop(which func(entry) bool) acl {
	if !slices.ContainsFunc(a, which) {
		return a
	}
	out := slices.DeleteFunc(slices.Clone(a), which)
	named := func(e entry) bool { return e.Tag == tagUser || e.Tag == tagGroups }
	if slices.ContainsFunc(out, named) {
		return out
	}
	mask := out.mask()
	if i := out.index(tagMask, noID); i >= 0 {
		out = slices.Delete(out, i, i+1)
	}
	if i := out.index(tagGroup, noID); i >= 0 {
		out[i].Perm &= mask
	}
	return out
}

// allows says whether a user who is in no group but gid may do all of p to a
// file of this owner and group (acl(5), "Access check algorithm").
func (a acl) allows(owner, group, uid, gid uint32, p perm) bool {
	perms := func(t tag, id uint32) (perm, bool) {
		if i := a.index(t, id); i >= 0 {
			return a[i].Perm, true
		}
		return 0, false
	}
	if uid == 0 {
		return true
	}
	if uid == owner {
		got, _ := perms(tagOwner, noID)
		return got&p == p
	}
	if got, ok := perms(tagUser, uid); ok {
		return got&a.mask()&p == p
	}
	if got, ok := perms(tagGroup, noID); ok && gid == group {
		return got&a.mask()&p == p
	}
	if got, ok := perms(tagGroups, gid); ok {
		return got&a.mask()&p == p
	}
	got, _ := perms(tagOther, noID)
	return got&p == p
}
