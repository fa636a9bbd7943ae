package netsetup

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// ErrNoNft is a host without the program that sets up packet filters.
var ErrNoNft = errors.New("nft is not installed (Debian: nftables)")

// apply has nft do a transaction: all of it, or nothing.
func apply(rules string) error {
	if rules == "" {
		return nil
	}
	words, err := nft(rules)
	if err == nil || errors.Is(err, ErrNoNft) {
		return err
	}
	return fmt.Errorf("set up the packet filter: %w%s", err, words)
}

// nft runs nft(8). Its words begin with ": ", and are none where it could not be
// run. It ends with us: had we been killed, what it did would come after whoever
// clears up.
func nft(rules string) (words string, err error) {
	program, err := exec.LookPath("nft")
	if err != nil {
		return "", ErrNoNft
	}
	// The signal is sent when the thread ends that has started it (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(program, "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	return ": " + firstLine(out), err
}

// removeCards removes the table of all cards of a family, unless a card is in it:
// then the kernel refuses that, since the card's chains end in one of the table's
// own.
func removeCards(family, shared string) error {
	words, err := nft(fmt.Sprintf("delete chain %[1]s %[2]s %[3]s\ndelete table %[1]s %[2]s\n", family, cardsTable, shared))
	if errors.Is(err, ErrNoNft) {
		return err
	}
	if err != nil && !isBusy(words) && !isGone(words) {
		return fmt.Errorf("remove the packet filter: %w%s", err, words)
	}
	return nil
}

// isGone and isBusy say whether nft has failed as there is no such thing, or as one
// that is to go is still used.
func isGone(words string) bool { return strings.Contains(words, "No such file or directory") }
func isBusy(words string) bool { return strings.Contains(words, "Device or resource busy") }

// hasSet says whether a table of bridges is there and has a set.
func hasSet(table, set string) (bool, error) {
	text, err := listSet(table, set)
	return text != "", err
}

// listSet is a set of a table of bridges in nft's words, "" where there is none.
func listSet(table, set string) (string, error) {
	program, err := exec.LookPath("nft")
	if err != nil {
		return "", ErrNoNft
	}
	out, err := exec.Command(program, "list", "set", "bridge", table, set).CombinedOutput()
	switch {
	case err == nil:
		return string(out), nil
	case isGone(string(out)):
		return "", nil
	}
	return "", fmt.Errorf("look at the packet filter: %w: %s", err, firstLine(out))
}

func firstLine(out []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
	return string(line)
}
