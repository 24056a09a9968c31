package spec

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var remake = flag.Bool("remake", false, "make testdata/made.txt anew; read the difference before you commit it")

// made is how many wrong specs a machine has made out of right ones, beside those of testdata/invalid.txt.
const made = 200

// spoil changes a right spec in one to three places, as a tired person, a bad paste or a broken disk does.
func spoil(r *rand.Rand, text string) string {
	words := []string{"service", "check", `"`, "{", "}", "=", "[", "]", "vip", "10.0.0.50/24", "-1", "1h1h", "\x00", "\xff", "\\", "${x}", "<<EOF", "#", "true", "null", "99999999999999999999", "0x10", "…", "\"a\" \"b\"", ",", ";", "\r", "\t"}
	for range 1 + r.IntN(3) {
		b := []byte(text)
		at := r.IntN(len(b))
		switch r.IntN(6) {
		case 0: // a piece is missing
			end := min(len(b), at+1+r.IntN(12))
			text = string(b[:at]) + string(b[end:])
		case 1: // a word too much
			text = string(b[:at]) + words[r.IntN(len(words))] + string(b[at:])
		case 2: // a line twice
			lines := strings.Split(text, "\n")
			i := r.IntN(len(lines))
			lines = append(lines[:i+1], lines[i:]...)
			text = strings.Join(lines, "\n")
		case 3: // cut off
			text = string(b[:max(1, at)])
		case 4: // one character is another one
			b[at] ^= 1 << r.IntN(7)
			text = string(b)
		case 5: // two lines change places
			lines := strings.Split(text, "\n")
			i, j := r.IntN(len(lines)), r.IntN(len(lines))
			lines[i], lines[j] = lines[j], lines[i]
			text = strings.Join(lines, "\n")
		}
	}
	return text
}

// TestWhatAMachineSpoiledIsRefusedAtItsPlaceWithARemedy reads the committed specs, quoted one a line, each of which is wrong.
func TestWhatAMachineSpoiledIsRefusedAtItsPlaceWithARemedy(t *testing.T) {
	const file = "testdata/made.txt"
	if *remake {
		makeSpoiled(t, file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != made {
		t.Fatalf("%d specs, want %d: go test -run Machine -remake", len(lines), made)
	}
	for i, l := range lines {
		var text string
		if _, err := fmt.Sscanf(l, "%q", &text); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		s, ds := Parse("x.hcl", []byte(text))
		if s != nil || len(ds) == 0 {
			t.Errorf("line %d is a right spec: %q", i+1, text)
		}
		whole := strings.Count(text, "\n") + 1
		for _, d := range ds {
			if d.Line < 1 || d.Line > whole || d.Column < 1 || d.What == "" || d.Remedy == "" || d.File != "x.hcl" {
				t.Errorf("line %d: %+v\n%s", i+1, d, text)
			}
			if strings.ContainsAny(d.String(), "\x00\x1b\r") {
				t.Errorf("line %d: what is shown holds control characters: %q", i+1, d.String())
			}
		}
	}
}

func makeSpoiled(t *testing.T, file string) {
	files, err := filepath.Glob("testdata/valid/*.hcl")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %d right specs", err, len(files))
	}
	var out strings.Builder
	r := rand.New(rand.NewPCG(1, 2))
	for n := 0; n < made; {
		b, err := os.ReadFile(files[r.IntN(len(files))])
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if len(text) > 1500 {
			text = text[:1500]
		}
		text = spoil(r, text)
		if s, ds := Parse("x.hcl", []byte(text)); s != nil || len(ds) == 0 {
			continue
		}
		fmt.Fprintf(&out, "%q\n", text)
		n++
	}
	if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
