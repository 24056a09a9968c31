package model

type store struct{ has uint8 }
type platter struct{ acked uint8 }

func (b *bench) survive(w *world, m int) store  { return w.m[m].data }
func (b *bench) powerLost(w *world, m int)      {}
func (b *bench) depose(w *world, m int)         {}
func (b *bench) promote(w *world, m int)        {}
func (b *bench) resend(w *world, m int)         {}
func (b *bench) followData(w *world, m int)     {}
func (b *bench) saysAlone(w *world, m int) bool { return false }
func (b *bench) accept(w *world, m int)         {}
func (b *bench) dataSteps(w *world)             {}
func (c *config) describeData(w *world) string  { return "" }
func (c *config) dataBroken(w *world) string    { return "" }
