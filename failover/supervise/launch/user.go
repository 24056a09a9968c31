package launch

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// Identity is a user as the kernel knows it.
type Identity struct {
	UID, GID uint32
	Groups   []uint32
	Name     string // "" if only the number is known
	Home     string
}

// lookup finds user and group; nil if the result is what we are already.
func lookup(name, group string) (*Identity, error) {
	id, err := Lookup(name, group)
	if err != nil {
		return nil, err
	}
	if int(id.UID) == os.Geteuid() && os.Geteuid() != 0 && group == "" {
		return nil, nil // not root: no change is wanted, and setgroups would be refused
	}
	return id, nil
}

// Lookup reads /etc/passwd and /etc/group at each call, so that a changed file counts at the next start. Names may be
// numbers.
func Lookup(name, group string) (*Identity, error) {
	id := &Identity{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if name != "" {
		u, err := findUser(name)
		if n, numErr := strconv.ParseUint(name, 10, 32); err != nil && numErr == nil {
			id.UID, id.GID = uint32(n), uint32(n) // a number without an entry: group of the same number
			id.Groups = []uint32{id.GID}
		} else if err != nil {
			return nil, fmt.Errorf("user %q is not in /etc/passwd of this host: create it, or give its number (users of LDAP or SSSD are not looked up): %w", name, err)
		} else {
			id.Name, id.Home = u.Username, u.HomeDir
			if id.UID, id.GID, err = numbers(u.Uid, u.Gid); err != nil {
				return nil, err
			}
			gids, err := u.GroupIds()
			if err != nil {
				return nil, fmt.Errorf("groups of user %q: %w", name, err)
			}
			for _, g := range gids {
				n, _, err := numbers(g, "0")
				if err != nil {
					return nil, err
				}
				id.Groups = append(id.Groups, n)
			}
		}
	}
	if group != "" {
		gid := group
		if g, err := user.LookupGroup(group); err == nil {
			gid = g.Gid
		}
		n, err := strconv.ParseUint(gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("group %q is not in /etc/group of this host: create it, or give its number", group)
		}
		id.GID = uint32(n)
		id.Groups = append(id.Groups, id.GID)
	}
	return id, nil
}

func findUser(name string) (*user.User, error) {
	u, err := user.Lookup(name)
	if err == nil {
		return u, nil
	}
	if strings.IndexFunc(name, func(c rune) bool { return c < '0' || c > '9' }) < 0 {
		return user.LookupId(name)
	}
	return nil, err
}

func numbers(a, b string) (uint32, uint32, error) {
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(b, 10, 32)
	return uint32(x), uint32(y), errors.Join(err1, err2)
}

// BaseEnv is the environment that every program starts from; the spec's env is added to it.
func BaseEnv(name, group string) []string {
	env := []string{"PATH=" + DefaultPath, "LANG=C.UTF-8"}
	id, err := Lookup(name, group)
	if err != nil {
		return env
	}
	if name == "" {
		if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil {
			id.Name, id.Home = u.Username, u.HomeDir
		}
	}
	if id.Name != "" {
		env = append(env, "HOME="+id.Home, "USER="+id.Name, "LOGNAME="+id.Name)
	}
	return env
}
