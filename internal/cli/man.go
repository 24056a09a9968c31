package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ManPages writes a manual page (man(7)) for a command and each one below it, out of the same texts as --help, and returns their names.
func ManPages(root *cobra.Command, dir, version string) ([]string, error) {
	var files []string
	var walk func(*cobra.Command) error
	walk = func(c *cobra.Command) error {
		if !c.IsAvailableCommand() && c.HasParent() || c.Name() == "help" {
			return nil
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".8"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(manPage(c, version)), 0o644); err != nil {
			return fmt.Errorf("write the manual pages: %w", err)
		}
		files = append(files, name)
		for _, sub := range c.Commands() {
			if err := walk(sub); err != nil {
				return err
			}
		}
		return nil
	}
	return files, walk(root)
}

func manPage(c *cobra.Command, version string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	title := strings.ReplaceAll(c.CommandPath(), " ", "-")
	p(`.TH "%s" 8 "" "hanode %s" "hanode"`, roff(strings.ToUpper(title)), roff(version))
	p(".SH NAME\n%s \\- %s", roff(title), roff(c.Short))
	p(".SH SYNOPSIS\n.B %s", roff(c.UseLine()))
	p(".SH DESCRIPTION")
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	for i, para := range strings.Split(text, "\n\n") {
		if i > 0 {
			p(".PP")
		}
		p("%s", roff(para))
	}
	if subs := available(c); len(subs) > 0 {
		p(".SH COMMANDS")
		for _, s := range subs {
			p(".TP\n.B %s\n%s", roff(s.CommandPath()), roff(s.Short))
		}
	}
	manFlags(p, ".SH OPTIONS", c.NonInheritedFlags())
	manFlags(p, ".SH OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c.Example != "" {
		p(".SH EXAMPLES\n.nf\n%s\n.fi", roff(c.Example))
	}
	p(".SH EXIT STATUS")
	for i, s := range []string{"done", "failed", "wrong usage or invalid spec", "refused for safety; the reason and the remedy are printed", "no quorum, or not reachable", "timed out"} {
		p(".TP\n.B %d\n%s", i, s)
	}
	if c.HasParent() {
		p(".SH SEE ALSO\n.BR %s (8)", roff(strings.ReplaceAll(c.Parent().CommandPath(), " ", "-")))
	}
	return b.String()
}

func available(c *cobra.Command) []*cobra.Command {
	var out []*cobra.Command
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() && s.Name() != "help" {
			out = append(out, s)
		}
	}
	return out
}

func manFlags(p func(string, ...any), head string, flags *pflag.FlagSet) {
	first := true
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if first {
			p("%s", head)
			first = false
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		arg, usage := pflag.UnquoteUsage(f)
		if arg != "" {
			name += " " + strings.ToUpper(arg)
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" {
			usage += " (default " + f.DefValue + ")"
		}
		p(".TP\n.B %s\n%s", roff(name), roff(usage))
	})
}

// roff makes text safe for man(7): backslashes and hyphens are escaped, and no line begins with a control character.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
