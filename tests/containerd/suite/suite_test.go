// containerd's own suite of snapshotters, each of its cases on a server of its own, through containerd's own client.
package suite

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

const patience = 60 * time.Second

// start runs `acetate snapshotter` below a root, and connects to it.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	address := filepath.Join(root, "s.sock")
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	server := exec.Command(os.Getenv("ACETATE"), "snapshotter", "--debug",
		"--mounts", os.Getenv("ACETATE_MOUNTS"),
		"--address", address, "--root", filepath.Join(root, "snapshots"))
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	end := func() error {
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		return server.Wait()
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	connection, err := grpc.DialContext(waiting, "unix://"+address, grpc.WithBlock(), grpc.WithInsecure())
	if err != nil {
		return nil, nil, fmt.Errorf("%w; the server's end: %v", err, end())
	}
	client := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "acetate")
	return client, func() error {
		err := connection.Close()
		if ended := end(); ended != nil {
			return ended
		}
		return err
	}, nil
}

func TestSnapshotter(t *testing.T) {
	testsuite.SnapshotterSuite(t, "acetate", start)
}
