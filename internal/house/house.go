// Package house has no code: its tests keep the house in order. They read the import graph and refuse a new edge, check the pinned
// versions, demand package comments, and bound the size of files.
package house
