package apitest

import (
	"context"

	"github.com/hanode/hanode/internal/api"
)

func (f *Fake) Volume(ctx context.Context, r api.VolumeRequest, _ api.Progress) (*api.VolumeAnswer, error) {
	s, err := f.service(r.Service)
	if err != nil {
		return nil, err
	}
	out := &api.VolumeAnswer{Action: r.Action, Service: r.Service, Active: s.Active, InSync: s.InSync, Plan: r.Plan}
	if r.Action != api.VolumeStatus {
		out.Text = append(out.Text, r.Action+" of "+r.Service)
		return out, nil
	}
	for _, n := range s.Nodes {
		role := "standby"
		if n == s.Active {
			role = "active"
		}
		out.Nodes = append(out.Nodes, api.VolumeNode{Node: n, Role: role, State: "all", Position: s.Position})
	}
	return out, nil
}
