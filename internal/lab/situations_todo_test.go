package lab

func disks() []situation     { return nil }
func clocks() []situation    { return nil }
func doors() []situation     { return nil }
func powerCuts() []situation { return nil }
