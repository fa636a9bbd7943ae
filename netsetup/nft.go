package netsetup

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// ErrNoNft is a host without the program that sets up packet filters.
var ErrNoNft = errors.New("nft is not installed (Debian: nftables)")

// apply has nft do a transaction: all of it, or nothing.
func apply(rules string) error {
	if rules == "" {
		return nil
	}
	program, err := exec.LookPath("nft")
	if err != nil {
		return ErrNoNft
	}
	cmd := exec.Command(program, "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set up the packet filter: %w: %s", err, firstLine(out))
	}
	return nil
}

// removeCards removes the table of all cards, unless a card is in it: then the
// kernel refuses that, since the card's chains end in one of the table's own.
func removeCards() error {
	program, err := exec.LookPath("nft")
	if err != nil {
		return ErrNoNft
	}
	cmd := exec.Command(program, "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("delete chain bridge %[1]s %[2]s\ndelete table bridge %[1]s\n", cardsTable, doneChain))
	out, err := cmd.CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("Device or resource busy")) && !bytes.Contains(out, []byte("No such file or directory")) {
		return fmt.Errorf("remove the packet filter: %w: %s", err, firstLine(out))
	}
	return nil
}

// hasSet says whether a table of bridges is there and has a set.
func hasSet(table, set string) (bool, error) {
	program, err := exec.LookPath("nft")
	if err != nil {
		return false, ErrNoNft
	}
	out, err := exec.Command(program, "list", "set", "bridge", table, set).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("No such file or directory")) {
		return false, fmt.Errorf("look at the packet filter: %w: %s", err, firstLine(out))
	}
	return err == nil, nil
}

func firstLine(out []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
	return string(line)
}
