package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// gluster measures a replica 2 volume with a brick on each disk, served by the glusterd of this machine, which must be running.
func (b *bench) gluster() error {
	vol := fmt.Sprintf("volbench%d", os.Getpid())
	host, err := os.Hostname()
	if err != nil {
		return err
	}
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
