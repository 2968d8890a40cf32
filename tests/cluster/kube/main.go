// Command kube is the Kubernetes of our tests in one file: every component is a subcommand, so that they share one link
// (a minute and 140 MB) instead of paying for it seven times. `kube etcd` is the API server's own store.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	metrics "sigs.k8s.io/metrics-server/cmd/metrics-server/app"
)

// components makes a command only when it is asked for: some of them register flags and metrics as they are made.
var components = map[string]func() *cobra.Command{
	"apiserver":   apiserver.NewAPIServerCommand,
	"controllers": controllers.NewControllerManagerCommand,
	"kubectl":     kubectl.NewDefaultKubectlCommand,
	"kubelet":     func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"metrics":     func() *cobra.Command { return metrics.NewMetricsServerCommand(server.SetupSignalHandler()) },
	"policies":    policiesCommand,
	"proxy":       proxy.NewProxyCommand,
	"scheduler":   func() *cobra.Command { return scheduler.NewSchedulerCommand() },
}

func main() {
	if len(os.Args) < 2 {
		usage("a component is missing")
	}
	name := os.Args[1]
	os.Args = os.Args[1:] // each component parses what follows its name
	if name == "etcd" {
		etcdmain.Main(os.Args)
		return
	}
	make, known := components[name]
	if !known {
		usage(fmt.Sprintf("there is no component %q", name))
	}
	os.Exit(cli.Run(make()))
}

func usage(problem string) {
	fmt.Fprintf(os.Stderr, "kube: %s; one of etcd %v\n", problem, slices.Sorted(maps.Keys(components)))
	os.Exit(2)
}
