package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/hanode/hanode/internal/api"
	"github.com/hanode/hanode/internal/cli"
	"github.com/hanode/hanode/internal/ui"
)

func alarmCmd(e *env) *cobra.Command {
	return cli.Group("alarm", "list and acknowledge alarms", alarmListCmd(e), alarmAckCmd(e))
}

func alarmListCmd(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the alarms, the acknowledged ones too",
		Args:  cli.Args(),
		RunE:  cli.Run(func(ctx context.Context, _ []string) error { return runAlarmList(ctx, e) }),
	}
}

func runAlarmList(ctx context.Context, e *env) error {
	b, hangUp := e.daemon()
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	l, err := b.Alarms(ctx)
	if err != nil {
		return err
	}
	return e.Print(map[string]any{"alarms": api.List[api.Alarm](l)}, func(w io.Writer) { ui.Alarms(w, l, e.Screen()) })
}

type ackOptions struct {
	orderFlags
	object string
}

func alarmAckCmd(e *env) *cobra.Command {
	var o ackOptions
	cmd := &cobra.Command{
		Use:   "ack CODE",
		Short: "acknowledge an alarm: it stays until its cause is gone, but nags nobody",
		Args:  cli.Args("CODE"),
		RunE:  cli.Run(func(ctx context.Context, args []string) error { return runAlarmAck(ctx, e, args[0], o) }),
	}
	o.register(cmd, time.Minute)
	cmd.Flags().StringVar(&o.object, "object", "", "only of this service, member or link")
	return cmd
}

func runAlarmAck(ctx context.Context, e *env, code string, o ackOptions) error {
	b, hangUp := e.daemon()
	defer hangUp()
	return e.carryOut(ctx, order{flags: o.orderFlags, command: "hanode alarm ack " + code, next: []string{"hanode status"},
		do: func(ctx context.Context, ord api.Order, p api.Progress) (*api.Outcome, error) {
			return b.AckAlarm(ctx, api.AckRequest{Order: ord, Code: code, Object: o.object}, p)
		}})
}
