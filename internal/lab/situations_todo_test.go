package lab

func doors() []situation { return nil }
