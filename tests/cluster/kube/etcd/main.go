// Command etcd is upstream's server, built here because the tests' cluster can pull no image: the chart's own etcd pods run it.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
