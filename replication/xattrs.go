package replication

import "encoding/binary"

// AppendXattr appends an extended attribute that an inode is born with: the Data of a Create of anything but a symbolic link is a row of
// them, so that an inode is never seen without its access lists.
func AppendXattr(b []byte, name string, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(value)))
	b = append(b, name...)
	return append(b, value...)
}

// EachXattr calls fn for each attribute of such a row. Errors: those of fn; ErrFormat.
func EachXattr(b []byte, fn func(name string, value []byte) error) error {
	for len(b) > 0 {
		if len(b) < 6 {
			return ErrFormat
		}
		n, v := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint32(b[2:]))
		b = b[6:]
		if n == 0 || n > MaxName || v > len(b)-n {
			return ErrFormat
		}
		if err := fn(string(b[:n]), b[n:n+v:n+v]); err != nil {
			return err
		}
		b = b[n+v:]
	}
	return nil
}
