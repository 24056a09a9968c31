package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
)

func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// serviceOrAll wants one service or --all, and not both.
func serviceOrAll(all *bool) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > 1 || (len(args) == 1) == *all {
			return errors.New("want one SERVICE, or --all")
		}
		return nil
	}
}

func atMostOne(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("want at most one %s, got %d arguments", name, len(args))
		}
		return nil
	}
}

// readFile reads a spec; "-" is stdin.
func (e *env) readFile(path string) ([]byte, error) {
	in := e.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, &api.Error{Code: api.CodeUsage, What: err.Error(), Do: "name a file that exists, or - for stdin"}
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, api.MaxRequest+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", path, err)
	case len(b) > api.MaxRequest:
		return nil, api.Errorf(api.CodeUsage, "%s is larger than %d bytes", path, api.MaxRequest)
	}
	return b, nil
}

// completeServices and completeNodes ask the daemon for names, quickly or not at all.
func (e *env) completeServices(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return e.names(func(s *api.Status) (out []string) {
		for _, v := range s.Services {
			out = append(out, v.Name)
		}
		return out
	})
}

func (e *env) completeNodes(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return e.names(func(s *api.Status) (out []string) {
		for _, m := range s.Members {
			if m.Role == "node" {
				out = append(out, m.Name)
			}
		}
		return out
	})
}

func (e *env) completeMembers(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return e.names(func(s *api.Status) (out []string) {
		for _, m := range s.Members {
			out = append(out, m.Name)
		}
		return out
	})
}

func (e *env) names(of func(*api.Status) []string) ([]string, cobra.ShellCompDirective) {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := b.Status(ctx, api.StatusQuery{Local: true})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return of(s), cobra.ShellCompDirectiveNoFileComp
}
