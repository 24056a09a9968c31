package spec

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// The functions of this file check one string each and return its canonical form, or what is wrong with it.

var (
	nameRE      = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	notName     = regexp.MustCompile(`[^a-z0-9-]+`)
	userRE      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9._-]{0,31}$`)
	interfaceRE = regexp.MustCompile(`^[!-.0-9;-~]{1,15}$`) // dev_valid_name of the kernel: no '/', ':' or space
	unitRE      = regexp.MustCompile(`^[A-Za-z0-9:_.@\\-]{1,240}\.(service|socket|target|mount|timer|path|scope|slice)$`)
	ocfRE       = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}:[A-Za-z0-9._-]{1,64}$`)
	hostRE      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?$`)
	dottedRE    = regexp.MustCompile(`^[0-9.]+$`)
	domainRE    = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,253}$`)
	envRE       = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

func nameSyntax(s string) (string, *wrong) {
	if nameRE.MatchString(s) {
		return s, nil
	}
	remedy := "names are 1 to 32 of a-z, 0-9 and -"
	if near := strings.Trim(notName.ReplaceAllString(strings.ToLower(s), "-"), "-"); nameRE.MatchString(near) {
		remedy += fmt.Sprintf(": %q, for instance", near)
	}
	return "", &wrong{fmt.Sprintf("%q is not a name", short(s)), remedy}
}

func siteSyntax(s string) (string, *wrong) {
	c, w := nameSyntax(s)
	if w != nil {
		w.what = fmt.Sprintf("%q is not the name of a site", short(s))
	}
	return c, w
}

func userSyntax(s string) (string, *wrong) {
	if userRE.MatchString(s) {
		return s, nil
	}
	return "", &wrong{fmt.Sprintf("%q is not the name of a user or group", short(s)), "write the name, not the number, without spaces"}
}

func interfaceSyntax(s string) (string, *wrong) {
	if interfaceRE.MatchString(s) && s != "." && s != ".." {
		return s, nil
	}
	return "", &wrong{fmt.Sprintf("%q is not the name of an interface", short(s)), "write it as `ip link` shows it, at most 15 characters"}
}

func pathSyntax(s string) (string, *wrong) {
	switch {
	case !strings.HasPrefix(s, "/"):
		return "", &wrong{fmt.Sprintf("%q is not a whole path", short(s)), "write it from the root: /..."}
	case len(s) > 4095 || strings.IndexFunc(s, unicode.IsControl) >= 0:
		return "", &wrong{"the path is longer than 4095 bytes or has control characters", "choose another path"}
	case path.Clean(s) != s:
		return "", &wrong{fmt.Sprintf("the path %q is not in its shortest form", short(s)), fmt.Sprintf("write %q", short(path.Clean(s)))}
	}
	return s, nil
}

// system are directories that nothing may be mounted over; below the first three nothing at all.
var system = []string{"/proc", "/sys", "/dev", "/", "/bin", "/boot", "/etc", "/home", "/lib", "/lib64", "/mnt", "/opt", "/root", "/run", "/sbin", "/srv", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run"}

func mountSyntax(s string) (string, *wrong) {
	c, w := pathSyntax(s)
	if w != nil {
		return "", w
	}
	for i, d := range system {
		if c == d || i < 3 && strings.HasPrefix(c, d+"/") {
			return "", &wrong{fmt.Sprintf("%s belongs to the system", c), "choose a directory of the application's own, such as /srv/app or /var/lib/app"}
		}
	}
	return c, nil
}

func textSyntax(s string) (string, *wrong) { return s, nil }

func unitSyntax(s string) (string, *wrong) {
	if unitRE.MatchString(s) {
		return s, nil
	}
	remedy := "write its whole name with its type, as `systemctl list-units` shows it"
	if unitRE.MatchString(s + ".service") {
		remedy = fmt.Sprintf("write %q", s+".service")
	}
	return "", &wrong{fmt.Sprintf("%q is not the name of a systemd unit", short(s)), remedy}
}

func ocfSyntax(s string) (string, *wrong) {
	if rest, ok := strings.CutPrefix(s, "ocf:"); ok && ocfRE.MatchString(rest) {
		return "", &wrong{fmt.Sprintf("%q says ocf twice", short(s)), fmt.Sprintf("write %q", rest)}
	}
	if ocfRE.MatchString(s) {
		return s, nil
	}
	return "", &wrong{fmt.Sprintf("%q is not an OCF agent", short(s)), `write class:name, such as "heartbeat:pgsql"`}
}

func hostSyntax(s string) (string, *wrong) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.String(), nil
	}
	if hostRE.MatchString(s) && !dottedRE.MatchString(s) {
		return s, nil
	}
	return "", &wrong{fmt.Sprintf("%q is not a host", short(s)), `write an address or a name, such as "10.0.0.1"`}
}

// hostPortSyntax accepts host:port, and :port for a port of this host.
func hostPortSyntax(s string) (string, *wrong) {
	if n, err := strconv.ParseUint(s, 10, 16); err == nil && n > 0 {
		return "", &wrong{fmt.Sprintf("%q has no host", s), fmt.Sprintf(`write "127.0.0.1:%d"`, n)}
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", &wrong{fmt.Sprintf("%q has no port", short(s)), `write host:port, such as "127.0.0.1:5432" or "[::1]:5432"`}
	}
	host, port := s[:i], s[i+1:]
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", &wrong{fmt.Sprintf("%q is not a port", short(port)), "write a number from 1 to 65535"}
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !a.Is6() || !strings.HasSuffix(inner, "]") {
			return "", &wrong{fmt.Sprintf("%q is not an IPv6 address", short(host)), `write it in brackets, such as "[::1]:5432"`}
		}
		return fmt.Sprintf("[%s]:%d", a, n), nil
	}
	if strings.Contains(host, ":") {
		return "", &wrong{fmt.Sprintf("%q is not a host and a port", short(s)), fmt.Sprintf(`an IPv6 address stands in brackets: "[%s]:%d"`, short(host), n)}
	}
	host, w := hostSyntax(host)
	if w != nil {
		return "", w
	}
	return fmt.Sprintf("%s:%d", host, n), nil
}

func httpSyntax(s string) (string, *wrong) {
	u, err := url.Parse(s)
	switch {
	case err != nil || strings.ContainsAny(s, " \t"):
		return "", &wrong{fmt.Sprintf("%q is not a URL", short(s)), `write it whole, such as "http://127.0.0.1:8080/health"`}
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.Hostname() == "":
		return "", &wrong{fmt.Sprintf("%q is not a whole http or https URL", short(s)), `write it whole, such as "http://127.0.0.1:8080/health"`}
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return "", &wrong{fmt.Sprintf("%q is not a port", short(p)), "write a number from 1 to 65535"}
		}
	}
	return s, nil
}

// postgresSyntax accepts what libpq accepts as a connection string: a URI or key=value pairs.
func postgresSyntax(s string) (string, *wrong) {
	bad := &wrong{fmt.Sprintf("%q is not a connection string", short(s)), `write key=value pairs, such as "host=/run/postgresql user=postgres", or postgres://user@host/db`}
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		if u, err := url.Parse(s); err != nil || u.User == nil && u.Host == "" && u.RawQuery == "" {
			return "", bad
		}
		return s, nil
	}
	rest := strings.TrimSpace(s)
	if rest == "" {
		return "", bad
	}
	for rest != "" {
		m := pairRE.FindString(rest)
		if m == "" {
			return "", bad
		}
		rest = strings.TrimLeft(rest[len(m):], " ")
	}
	return s, nil
}

var pairRE = regexp.MustCompile(`^[a-z_]+ *= *('([^'\\]|\\.)*'|[^' ]*)( |$)`)

// mysqlSyntax accepts the data source names of the Go driver: [user[:password]@][net[(addr)]]/db[?params].
func mysqlSyntax(s string) (string, *wrong) {
	if mysqlRE.MatchString(s) {
		return s, nil
	}
	return "", &wrong{fmt.Sprintf("%q is not a data source name", short(s)), `write user[:password]@net(address)/[db], such as "check@unix(/run/mysqld/mysqld.sock)/" or "check@tcp(127.0.0.1:3306)/"`}
}

var mysqlRE = regexp.MustCompile(`^([^@]+@)?((tcp|unix)\([^()]+\))?/[^/ ]*$`)

// dnsSyntax accepts name, or name@server with or without a port.
func dnsSyntax(s string) (string, *wrong) {
	name, server, has := strings.Cut(s, "@")
	if !domainRE.MatchString(name) {
		return "", &wrong{fmt.Sprintf("%q is not a name to ask for", short(name)), `write name or name@server:port, such as "example.org@127.0.0.1:53"`}
	}
	if !has {
		return name + "@127.0.0.1:53", nil
	}
	if a, err := netip.ParseAddr(strings.Trim(server, "[]")); err == nil {
		return name + "@" + netip.AddrPortFrom(a, 53).String(), nil
	}
	if !strings.Contains(server, ":") {
		server += ":53"
	}
	server, w := hostPortSyntax(server)
	if w != nil {
		return "", w
	}
	return name + "@" + server, nil
}

func mailSyntax(s string) (string, *wrong) {
	user, domain, _ := strings.Cut(s, "@")
	if user == "" || len(s) > 254 || strings.ContainsAny(user, " \t,;<>\"\r\n") || !hostRE.MatchString(domain) {
		return "", &wrong{fmt.Sprintf("%q is not one mail address", short(s)), `write it alone, such as "oncall@example.org"; one alert block for each address`}
	}
	return s, nil
}

func syslogSyntax(s string) (string, *wrong) {
	if s == "local" {
		return s, nil
	}
	for _, scheme := range []string{"udp://", "tcp://"} {
		if rest, ok := strings.CutPrefix(s, scheme); ok {
			hp, w := hostPortSyntax(rest)
			return scheme + hp, w
		}
	}
	return "", &wrong{fmt.Sprintf("%q is not a syslog", short(s)), `write "local", or udp:// or tcp:// with host:port, such as "udp://10.0.0.9:514"`}
}

// vipSyntax accepts an address that a host of a network may have, with the network's length.
func vipSyntax(s string) (string, *wrong) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			bits := 24
			if a.Is6() && !a.Is4In6() {
				bits = 64
			}
			return "", &wrong{fmt.Sprintf("%q has no network length", s), fmt.Sprintf(`write the length of its network too, as in "%s/%d"`, a, bits)}
		}
		return "", &wrong{fmt.Sprintf("%q is not an address with its network's length", short(s)), `write ADDRESS/LENGTH, such as "10.0.0.50/24" or "2001:db8::50/64"`}
	}
	a, m := p.Addr(), p.Masked()
	const host = "choose an address that one host of the network may have"
	short := a.Is4() && p.Bits() < 31 || a.Is6() && p.Bits() < 127
	switch {
	case a.Is4In6():
		return "", &wrong{fmt.Sprintf("%s is an IPv4 address in IPv6 clothes", s), fmt.Sprintf(`write "%s/LENGTH"`, a.Unmap())}
	case a.IsUnspecified() || p.Bits() == 0 || a.Is4() && a.As4()[0] == 0:
		return "", &wrong{fmt.Sprintf("%s is no host's address", s), host}
	case a.IsLoopback():
		return "", &wrong{fmt.Sprintf("%s is a loopback address: no client can reach it", s), host}
	case a.IsMulticast():
		return "", &wrong{fmt.Sprintf("%s is a multicast address", s), host}
	case a.Is4() && a.As4()[0] >= 240:
		return "", &wrong{fmt.Sprintf("%s is reserved or the broadcast address of all networks", s), host}
	case short && a == m.Addr():
		return "", &wrong{fmt.Sprintf("%s is the address of the network itself", s), host}
	case short && a.Is4() && a == lastOf(m):
		return "", &wrong{fmt.Sprintf("%s is the broadcast address of its network", s), host}
	}
	return p.String(), nil
}

// lastOf is the highest address of an IPv4 network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// short cuts what is quoted in a message.
func short(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}
