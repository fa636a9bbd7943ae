package hypervisor

// Readiness is how it is with a guest that is waited for: the content of
// paths.Readiness. There is none as long as nothing is known.
type Readiness struct {
	Ready bool   `json:"ready"`
	Text  string `json:"text,omitempty"` // why it is not, or is without having said so
}
