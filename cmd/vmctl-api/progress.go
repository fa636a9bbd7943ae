package main

import (
	"context"
	"encoding/json"
)

// progressQueue is how many pieces of news wait for a caller that reads slowly: more
// it is not told, since the last message has it all.
const progressQueue = 64

// told has vmctl do something with --progress. Each piece of news is turned into what
// sends it, or left out where that cannot be read. Whoever does not read holds nothing
// up. It returns once nothing is sent any more.
func (s *server) told(ctx context.Context, cmd command, result any, news func(json.RawMessage) (send func() error, err error)) error {
	queue := make(chan func() error, progressQueue)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for send := range queue {
			// Who has gone ends the call by that.
			_ = safely("progress", send)
		}
	}()
	cmd.progress = func(line json.RawMessage) {
		send, err := news(line)
		if err != nil {
			return
		}
		select {
		case queue <- send:
		default:
		}
	}
	err := s.commands.run(ctx, cmd, result)
	close(queue)
	<-over
	return err
}
