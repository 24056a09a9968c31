package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// glusterd makes sure that one runs, and returns what ends it if it was started here.
func (b *bench) glusterd() (end func(), err error) {
	up := func() bool {
		return exec.Command("gluster", "--mode=script", "--timeout=5", "volume", "list").Run() == nil
	}
	if up() {
		return func() {}, nil
	}
	cmd := exec.Command("glusterd", "-N", "-l", filepath.Join(b.dir, "glusterd.log"))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	end = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	for deadline := time.Now().Add(30 * time.Second); !up(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			end()
			return nil, errors.New("glusterd does not answer within 30 s")
		}
	}
	return end, nil
}

// gluster measures a replica 2 volume with a brick on each disk; both bricks are served by this machine.
func (b *bench) gluster() error {
	vol := fmt.Sprintf("volbench%d", os.Getpid())
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	end, err := b.glusterd()
	if err != nil {
		return err
	}
	defer end()
	cli := func(args ...string) error {
		if out, err := exec.Command("gluster", append([]string{"--mode=script"}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("gluster %v: %w: %s", args, err, out)
		}
		return nil
	}
	if err := cli("volume", "create", vol, "replica", "2", host+":"+filepath.Join(b.disks[0], vol), host+":"+filepath.Join(b.disks[1], vol), "force"); err != nil {
		return err
	}
	defer cli("volume", "delete", vol)
	if err := cli("volume", "start", vol); err != nil {
		return err
	}
	defer cli("volume", "stop", vol, "force")
	mnt := filepath.Join(b.dir, "gluster")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("mount", "-t", "glusterfs", host+":/"+vol, mnt).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	defer exec.Command("umount", "-l", mnt).Run()
	return b.workloads("gluster", mnt)
}
