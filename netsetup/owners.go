package netsetup

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/vmctl/vmctl/config"
)

// owner is who has an address on a bridge of the host's own.
type owner struct {
	address string // in nft's words
	mac     config.MAC
	fixed   bool // by a definition, and not for a time
}

// ownerWords is an element of the owners' set. One that stays has no time.
var ownerWords = regexp.MustCompile(`([0-9a-fx.]+) \. ([0-9a-f:]{17})( timeout)?`)

// parseOwners reads what nft says of the set.
func parseOwners(text string) []owner {
	var all []owner
	for _, m := range ownerWords.FindAllStringSubmatch(text, -1) {
		all = append(all, owner{m[1], config.MAC(m[2]), m[3] == ""})
	}
	return all
}

// ownersOf are those of the addresses of a protocol; nobody where there is no set.
func ownersOf(o owned) ([]owner, error) {
	text, err := listSet(cardsTable, o.owners())
	return parseOwners(text), err
}

// freeAddresses has cards that are gone own no address on a bridge of the host's own
// any more. What it knows of is what they had as they were plugged in, whatever their
// definitions say by now.
func freeAddresses(domain string, macs []config.MAC) error {
	own4, own6 := ownedOn(domain)
	var all, makers strings.Builder
	for _, o := range []owned{own4, own6} {
		for _, name := range o.names() {
			fmt.Fprintf(&all, "delete set bridge %s %s\n", cardsTable, name)
		}
		for _, mac := range macs {
			// Who starts again and again makes no more of them for that.
			removeElement(&makers, "makers"+o.suffix[:1], string(mac))
		}
	}
	// With the last card there the sets go themselves.
	failed := func(err error, words string) error {
		return fmt.Errorf("free the addresses of %v: %w%s", macs, err, words)
	}
	// Without the sets nft has done nothing of the rest either.
	gone := func() error {
		if words, err := nft(makers.String()); err != nil && !isGone(words) {
			return failed(err, words)
		}
		return nil
	}
	words, err := nft(makers.String() + all.String())
	switch {
	case err == nil:
		return nil
	case isGone(words):
		return gone()
	case !isBusy(words):
		return failed(err, words)
	}
	var free strings.Builder
	free.WriteString(makers.String())
	for _, o := range []owned{own4, own6} {
		owners, err := ownersOf(o)
		if err != nil {
			return err
		}
		o.free(&free, owners, macs)
	}
	words, err = nft(free.String())
	switch {
	case err == nil:
		return nil
	case isGone(words): // with another's end
		return gone()
	}
	return failed(err, words)
}

// free has cards have none of the addresses any more. One that a definition gives to
// two, as no start lets happen that knows of the other, stays the other's.
func (o owned) free(b *strings.Builder, owners []owner, macs []config.MAC) {
	for _, has := range owners {
		if !slices.Contains(macs, has.mac) {
			continue
		}
		removeElement(b, o.owners(), has.address+" . "+string(has.mac))
		shared := slices.ContainsFunc(owners, func(other owner) bool {
			return other.address == has.address && other.fixed == has.fixed && !slices.Contains(macs, other.mac)
		})
		switch {
		case shared:
		case has.fixed:
			removeElement(b, o.fixed(), has.address)
		default:
			removeElement(b, "owned"+o.suffix, has.address)
		}
	}
}

// removeElement removes an element of a set. One that has expired meanwhile is no
// error.
func removeElement(b *strings.Builder, set, element string) {
	fmt.Fprintf(b, "add element bridge %[1]s %[2]s { %[3]s }\ndelete element bridge %[1]s %[2]s { %[3]s }\n", cardsTable, set, element)
}

// checkFixed refuses an address that a definition gives to a card on a bridge of the
// host's own, and another's to one that is plugged in: which of them are on one
// bridge, and in one VLAN of it, definitions alone do not tell. The caller of [Plug]
// keeps others from plugging in such cards meanwhile.
func (s CardState) checkFixed() error {
	own4, own6 := ownedOn(s.domain)
	for _, a := range s.fixed {
		o := own6
		if a.Is4() {
			o = own4
		}
		owners, err := ownersOf(o)
		if err != nil {
			return err
		}
		for _, has := range owners {
			if !has.fixed || has.mac == s.MAC || has.address != o.element(a) {
				continue
			}
			other, err := cardOfGuest(has.mac)
			if err != nil {
				return err
			}
			if other != "" {
				return &TakenError{a, s.Bridge, other}
			}
		}
	}
	return nil
}

// TakenError is an address that a definition gives to a card, and that another has
// on the same bridge of the host's own.
type TakenError struct {
	Address netip.Addr
	Bridge  string
	Card    string // the other, by a name for people
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("want an address of its own on %s, got %s, which the card %s is plugged in with", e.Bridge, e.Address, e.Card)
}

// cardOfGuest is the card that is plugged into a bridge for a guest with an Ethernet
// address, by a name for people; "" for none.
func cardOfGuest(mac config.MAC) (string, error) {
	address, err := tapAddress(mac)
	if err != nil {
		return "", err
	}
	links, err := whole("interfaces", netlink.LinkList)
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if isCard(l) && l.Attrs().HardwareAddr.String() == address.String() {
			return cardName(l), nil
		}
	}
	return "", nil
}
