// Package importer makes definitions of what other managers of virtual machines
// have written. Each has a package below this one, which is a pure function from
// the text of a file to drafts of definitions and to all that is not in them.
//
// Nothing is lost without a word: a document is read into [Node]s that know
// whether somebody has looked at them, and what nobody has is told as not carried
// over (see [Builder.Finish]).
package importer
