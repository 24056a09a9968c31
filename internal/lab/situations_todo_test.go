package lab
func cuts() []situation { return nil }
func witnessSituations() []situation { return nil }
func disks() []situation { return nil }
func clocks() []situation { return nil }
func doors() []situation { return nil }
func powerCuts() []situation { return nil }
