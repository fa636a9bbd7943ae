package bus

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// varlinkError is what a varlink service (varlink.org) refuses a call with.
type varlinkError struct {
	Name       string          `json:"error"`
	Parameters json.RawMessage `json:"parameters"`
}

func (e *varlinkError) Error() string {
	if len(e.Parameters) == 0 || string(e.Parameters) == "{}" {
		return e.Name
	}
	return e.Name + " " + string(e.Parameters)
}

// maxVarlink bounds an answer, in bytes.
const maxVarlink = 1 << 20

// varlink calls one method of the service that listens at socket, and ends the
// connection. The error is a [*varlinkError] where the service refuses.
func varlink(ctx context.Context, socket, method string, parameters any) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	// Each message is a JSON object, and a zero byte.
	call, err := json.Marshal(map[string]any{"method": method, "parameters": parameters})
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(call, 0)); err != nil {
		return err
	}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, maxVarlink)
	in.Split(func(data []byte, _ bool) (int, []byte, error) {
		for i, b := range data {
			if b == 0 {
				return i + 1, data[:i], nil
			}
		}
		return 0, nil, nil
	})
	if !in.Scan() {
		if err := errors.Join(ctx.Err(), in.Err()); err != nil {
			return err
		}
		return fmt.Errorf("%s has hung up", socket)
	}
	answer := &varlinkError{}
	if err := json.Unmarshal(in.Bytes(), answer); err != nil {
		return fmt.Errorf("%s: %w", socket, err)
	}
	if answer.Name != "" {
		return answer
	}
	return nil
}
