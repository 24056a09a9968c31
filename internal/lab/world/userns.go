package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Privilege is what this process may do.
type Privilege int

const (
	Full    Privilege = iota // root: everything is shown
	InUser                   // root of a user namespace: EnterUserNamespace has been called
	Nothing                  // EnterUserNamespace is needed
)

const userMark = "HANODE_LAB_USERNS"

// Privileged finds out by trying to make the namespaces of a host.
func Privileged(self []string) Privilege {
	cmd := exec.Command(self[0], append(append([]string(nil), self[1:]...), NothingCommand)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: hostFlags}
	switch err := cmd.Run(); {
	case err != nil:
		return Nothing
	case os.Getenv(userMark) != "":
		return InUser
	default:
		return Full
	}
}

// NothingCommand exits with status 0 at once.
const NothingCommand = "lab-nothing"

// EnterUserNamespace runs argv again as root of a new user namespace, with this process's standard streams, and
// returns its exit status. The error says why the kernel did not allow it and what to do.
func EnterUserNamespace(ctx context.Context, argv []string) (int, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), userMark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	// The signals of a terminal reach the child by themselves; this process only waits for it.
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(sigs)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("neither root nor a user namespace is to be had here, so there can be no hosts: %w; "+
			"run it as root, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "+
			"kernel.apparmor_restrict_unprivileged_userns)", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			var exit *exec.ExitError
			switch {
			case err == nil:
				return 0, nil
			case errors.As(err, &exit) && exit.Exited():
				return exit.ExitCode(), nil
			default:
				return 1, err
			}
		case s := <-sigs:
			if s == syscall.SIGTERM {
				_ = cmd.Process.Signal(s)
			}
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM)
			ctx = context.Background()
		}
	}
}

// SettleIn makes the mounts of the new user namespace private and gives it its own /proc. To be called once by the
// process that EnterUserNamespace started; within a container the kernel may refuse the /proc, which costs little.
func SettleIn() error {
	if os.Getenv(userMark) == "" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts of the user namespace private: %w", err)
	}
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}
