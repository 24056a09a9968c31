//go:build !race

package link

const announced = false
