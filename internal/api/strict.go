package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// strict reads exactly one JSON object and refuses keys that into does not have.
func strict(body []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one object")
	}
	return nil
}
