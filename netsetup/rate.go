package netsetup

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Adjust sets the link and the limits of a card that is plugged in to what its
// state says.
//
// What goes to the guest leaves the host by the card's interface, and waits its
// turn there (tc-tbf(8)). What comes from it has come already when the host
// learns of it: what is too much of that is dropped, which makes the guest's own
// protocols slow down.
func Adjust(s CardState) error {
	link, err := netlink.LinkByName(s.Interface)
	if err != nil {
		return fmt.Errorf("find %s: %w", s.Interface, err)
	}
	if s.Lower != "" { // which has no limits
		return setLink(s, link)
	}
	if err := apply(limitRules(s)); err != nil {
		return err
	}
	if err := shape(s, link); err != nil {
		return err
	}
	return setLink(s, link)
}

// setLink lets frames pass, or none.
func setLink(s CardState, link netlink.Link) error {
	set, word := netlink.LinkSetUp, "up"
	if s.Down {
		set, word = netlink.LinkSetDown, "down"
	}
	if err := set(link); err != nil {
		return fmt.Errorf("set %s %s: %w", s.Interface, word, err)
	}
	return nil
}

// limitTable is the name of the table that limits what comes from a card.
func limitTable(tap string) string {
	return "vmctl_rate_" + cardID(tap)
}

// removeLimit is a transaction after which that table is not there.
func removeLimit(tap string) string { return removeTable("netdev", limitTable(tap)) }

// limitRules is a transaction after which what comes from a card, whose interface
// is there, is limited as its state says. It is none of the card's other tables,
// so that each can be replaced alone.
func limitRules(s CardState) string {
	if s.RateOut == 0 {
		return removeLimit(s.Interface)
	}
	// nft lets a second's worth pass at once, and the burst beside that.
	return replaceTable("netdev", limitTable(s.Interface), fmt.Sprintf(`	chain ingress {
		type filter hook ingress device %q priority -500; policy accept;
		limit rate over %d bytes/second burst %d bytes drop
	}
`, s.Interface, s.RateOut, minBurst))
}

// minBurst is how much at least passes at once, in bytes: less than one packet
// that the guest's segmentation offload has made would let nothing pass.
const minBurst = 128 << 10

// shape limits what goes to the guest.
func shape(s CardState, link netlink.Link) error {
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if s.RateIn == 0 {
		have, err := netlink.QdiscList(link)
		if err != nil {
			return fmt.Errorf("list the queues of %s: %w", s.Interface, err)
		}
		for _, q := range have {
			if q.Type() == "tbf" && q.Attrs().Parent == netlink.HANDLE_ROOT {
				if err := netlink.QdiscDel(q); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("take the limit from %s: %w", s.Interface, err)
				}
			}
		}
		return nil
	}
	if err := netlink.QdiscReplace(bucket(attrs, uint64(s.RateIn))); err != nil {
		return fmt.Errorf("limit %s to %d bytes per second (tc tbf): %w", s.Interface, s.RateIn, err)
	}
	return nil
}

// bucket is a token bucket of a rate in bytes per second: 10 ms of it pass at
// once, and up to 50 ms wait.
func bucket(attrs netlink.QdiscAttrs, rate uint64) *netlink.Tbf {
	burst := bytes32(max(rate/100, minBurst))
	return &netlink.Tbf{
		QdiscAttrs: attrs,
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, burst),
		Limit:      bytes32(uint64(burst) + max(rate/20, minBurst)),
	}
}

// bytes32 is a number of bytes as far as tc can say it.
func bytes32(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }
