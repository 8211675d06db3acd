// Command pause holds a pod's namespaces open: it does nothing until it is told to end.
//
// As process 1 of a pod it also inherits orphans; ignoring SIGCHLD makes the kernel collect them.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signal.Ignore(syscall.SIGCHLD)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
