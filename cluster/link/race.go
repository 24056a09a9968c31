//go:build race

package link

// announced says that the calls of connections are announced all the same: the race detector takes what one goroutine writes to a connection and
// another reads from it for an order between the two, and sees that only in announced calls.
const announced = true
