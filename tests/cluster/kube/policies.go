package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

// queue is the number that the node's iptables rule names: -j NFQUEUE --queue-num 100.
const queue = 100

// policiesCommand enforces NetworkPolicies on one node: the first packet of every connection waits in a netfilter queue
// until it is judged. The library would install its own nftables rules with a "queue" statement, which not every kernel has;
// it logs that this failed and goes on, and an iptables rule of ours feeds the queue instead. Its NRI plugin must stay on
// even where containerd has no NRI: version 0.8.0 dereferences nil without it.
func policiesCommand() *cobra.Command {
	var kubeconfig, node string
	command := &cobra.Command{
		Use:          "policies",
		Short:        "judge new connections of one node's pods by the cluster's NetworkPolicies",
		SilenceUsage: true,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return enforce(ctx, kubeconfig, node)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&node, "node", "", "this node's name")
	return command
}

func enforce(ctx context.Context, kubeconfig, node string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	watched := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(client,
		watched.Networking().V1().NetworkPolicies(), watched.Core().V1().Namespaces(), watched.Core().V1().Pods(),
		nil, nil, nil, nil, networkpolicy.Config{NodeName: node, QueueID: queue})
	if err != nil {
		return err
	}
	watched.Start(ctx.Done())
	return controller.Run(ctx)
}
