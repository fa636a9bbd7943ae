// Package console keeps a machine's text console: it remembers what the guest
// wrote, serves it to any number of clients, turns it into lines for a log,
// and is the clients' side of the same.
//
// It knows nothing of machines, units or the journal: it is given a stream
// from and to the guest, a listening socket, and a function for each line.
//
// # Protocol
//
// A client connects to the Unix stream socket and sends one line:
//
//	attach\n   what was written so far, a NUL, then what is written from now
//	           on; every byte that the client sends goes to the guest
//	follow\n   the same without the NUL, but what the client sends is ignored
//	log\n      what was written so far; then the server closes
//
// From then on both directions are the console's bytes, nothing else. The
// server closes when the machine has ended and the client was sent all. What
// is replayed, and all that "follow" and "log" are sent, is cleaned of
// questions that a terminal would answer, because nobody waits for the answer
// any more. What is replayed has no NUL, and nothing by which each start of the
// guest would wipe out what was there before it (see [cleaner]).
//
// A client that does not read loses nothing but its own: the guest and the
// other clients go on, and it is told how many bytes it has missed once it
// reads again.
package console
