package main

// child returns the hidden command that args name. They are no part of the contract with operators, and start as little
// as possible: the guard allocates nothing once it runs, and exec-child becomes another program at once.
func (e *env) child(args []string) (func() int, bool) {
	if len(args) == 0 {
		return nil, false
	}
	if args[0] == "demo" && e.demoMain != nil {
		return func() int { return e.demoMain(args[1:]) }, true
	}
	f := map[string]func([]string) int{"exec-child": e.execChild, "guard": e.guard, "volume-server": e.volumeServer}[args[0]]
	if f == nil {
		return nil, false
	}
	return func() int { return f(args[1:]) }, true
}
