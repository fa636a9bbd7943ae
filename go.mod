module github.com/vmctl/vmctl

go 1.26
