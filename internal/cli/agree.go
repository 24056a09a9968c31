package cli

import "github.com/hanode/hanode/internal/api"

// MustAgree returns nil if a person has agreed: by --yes, or now. Nobody to be asked is wrong usage.
func (e *Env) MustAgree(yes bool, what string) error {
	if yes {
		return nil
	}
	if !e.Interactive {
		return api.Errorf(api.CodeUsage, "nobody can be asked whether to %s: add --yes", what)
	}
	ok, err := e.Ask("Really " + what + "?")
	if err != nil {
		return err
	}
	if !ok {
		return NotDone()
	}
	return nil
}

// NotDone is how a command ends that a person did not agree to.
func NotDone() error {
	return &api.Error{Code: api.CodeRefused, What: "nothing was done", Why: "you did not agree"}
}
