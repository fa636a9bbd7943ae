// Package proto has the services of vmctl-api(8) as protocol buffers, in a
// directory for each, with the Go code that is generated from them. A program in Go
// imports those; others generate their own from the same files, which are installed
// in /usr/share/vmctl/proto.
//
// To generate: buf, protoc-gen-go and protoc-gen-go-grpc.
package proto

//go:generate buf generate
