package qemu

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// key is one key of QEMU's send-key.
type key struct {
	Type string `json:"type"`
	Data string `json:"data"`
}

// SendKeys takes the names of QEMU's QKeyCode.
func (c *control) SendKeys(ctx context.Context, hold time.Duration, keys ...string) error {
	var arguments struct {
		Keys []key `json:"keys"`
		Hold int64 `json:"hold-time,omitempty"` // milliseconds
	}
	arguments.Hold = hold.Milliseconds()
	for _, k := range keys {
		arguments.Keys = append(arguments.Keys, key{"qcode", k})
	}
	return c.run(ctx, "send-key", arguments, nil)
}

// Keys are those of QKeyCode (qapi/ui.json) that QEMU 7.2 has, but for
// "unmapped", and for those of keyboards that no PC has.
func (QEMU) Keys() []string {
	all := strings.Fields(`
		esc minus equal backspace tab ret spc caps_lock num_lock scroll_lock
		shift shift_r ctrl ctrl_r alt alt_r meta_l meta_r menu compose
		bracket_left bracket_right semicolon apostrophe grave_accent backslash comma dot slash less
		asterisk print sysrq pause home pgup pgdn end insert delete left up down right
		kp_divide kp_multiply kp_subtract kp_add kp_enter kp_decimal kp_comma kp_equals
		ro hiragana henkan muhenkan yen katakanahiragana lang1 lang2
		power sleep wake audionext audioprev audiostop audioplay audiomute volumeup volumedown
		mediaselect mail calculator computer ac_home ac_back ac_forward ac_refresh ac_bookmarks`)
	for n := range 10 {
		all = append(all, fmt.Sprint(n), fmt.Sprintf("kp_%d", n))
	}
	for n := range 12 {
		all = append(all, fmt.Sprintf("f%d", n+1))
	}
	for letter := 'a'; letter <= 'z'; letter++ {
		all = append(all, string(letter))
	}
	return all
}
