package lab

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

func (m Measurement) printShort(out io.Writer) {
	fmt.Fprintf(out, "      outage %s ms, gap %s ms, two actives %s ms, epoch %s\n", num(m.OutageMS), num(m.GapMS), num(m.DualActiveMS), m.epochs())
	if m.Explanation != "" {
		fmt.Fprintf(out, "      %s\n", m.Explanation)
	}
	for _, p := range m.Problems {
		fmt.Fprintf(out, "      FAIL %s\n", p)
	}
}

func (m Measurement) epochs() string {
	if m.EpochAfter == m.EpochBefore {
		return fmt.Sprint(m.EpochBefore)
	}
	return fmt.Sprintf("%d to %d", m.EpochBefore, m.EpochAfter)
}

func num(v float64) string {
	if v >= 100 || v == 0 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// print writes the table and the verdict.
func (r Report) print(out io.Writer) {
	fmt.Fprintf(out, "\nAs the client saw it (a new connection every 5 ms), in milliseconds; profile %s, Linux %s, %d CPUs.\n\n", r.Profile, r.Machine.Kernel, r.Machine.CPUs)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tOUTAGE\tGAP\tTWO ACTIVES\tAFTER HEALING\tEPOCH\tVERDICT\tWHAT HANODE SAYS")
	for _, m := range r.Faults {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Title, num(m.OutageMS), num(m.GapMS), num(m.DualActiveMS),
			num(m.AfterHealGapMS), m.epochs(), m.Verdict, clip(m.Explanation, 110))
	}
	_ = w.Flush() // out's errors are the caller's to find
	r.printData(out)
	if len(r.NotShown) > 0 {
		fmt.Fprintln(out, "\nNot shown on this machine:")
		for _, n := range r.NotShown {
			fmt.Fprintln(out, "  -", n)
		}
	}
	if len(r.Problems) > 0 {
		fmt.Fprintln(out, "\nProblems:")
		for _, p := range r.Problems {
			fmt.Fprintln(out, "  -", p)
		}
	}
	fmt.Fprintf(out, "\nVerdict: %s\n", strings.ToUpper(r.Verdict))
}

func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}
