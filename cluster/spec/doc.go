// Package spec reads the file in which operators describe a cluster and compiles it into cluster.Spec, with all
// defaults filled in. It also writes that language (Format, Render), compares two compiled specs (Diff), says what this
// version cannot run (Unsupported), checks a spec against one member (Validate), and describes itself (Schema, Help).
//
// The language is a small part of HCL: one argument per line, blocks whose label is their name, literal values only.
// There are no expressions, functions, variables, templates or here-documents, and commands are lists of arguments, so
// that nothing is ever given to a shell. What the file says is what every member does, on any machine, at any time.
//
// It never reads a file, never looks at the machine and never asks the clock or the network: Parse is a function of its
// arguments, so that every member that compiles the same text gets the same spec. Only Validate asks about the machine,
// and only through the functions that its caller hands in.
//
// One table of keys (keys.go) is the source of everything: what the parser accepts and its defaults, what Render writes,
// which keys Diff compares and what class a change has, the JSON schema and the help text. A key that is in the table is
// complete; a key that is not in it does not exist. A test compares the table with the fields of cluster.Spec.
//
// Callers must not use the spec that Parse returns together with diagnostics: it is nil then. Input is bounded
// (maxSource bytes, maxDepth brackets) before it is parsed, because the parser below recurses.
package spec
