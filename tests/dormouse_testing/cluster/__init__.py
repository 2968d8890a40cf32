"""A real Kubernetes on this machine, of several nodes, without Docker, registry or virtual machine.

The control plane runs on the host. A node is kubelet, containerd, kube-proxy and a judge of NetworkPolicies in a network namespace of
the node's name, joined to the host by a bridge, with one cgroup around everything that it runs. Only the network is a namespace: files
and process ids are the host's, so one disk, one clock and one user are every node's.

**The network is closed.** Pods reach each other, Services and the host, and nothing else: nodes have no default route, and what the host
does not know of the cluster's addresses goes into a blackhole instead of out of the machine. No image can be pulled; images are built
here and imported.

`layout` names places and addresses, `tools` brings and builds programs, `processes` starts and ends them, `certificates` and
`control_plane` and `nodes` are what they say, `images` builds and imports, `lifecycle` puts them in order, `commands` is the command line,
`client` is what tests hold in their hands. Standard library only: the command must run before there is an environment.
"""
