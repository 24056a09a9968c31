package ui

import (
	"regexp"
	"strings"
)

// Unsayable returns the first word of text that never stands on an operator's screen, or "". Those who make sentences
// for operators test them with it.
func Unsayable(text string) string {
	never := regexp.MustCompile(`(?i)\b(sticky|unsticky|generations?|incarnations?|promis(e|es|ed|ing)|systemd service)\b`)
	return strings.ToLower(never.FindString(text))
}
