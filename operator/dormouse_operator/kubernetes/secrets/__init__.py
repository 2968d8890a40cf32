"""The Secrets of the chart's etcd: made by the operator, replaced by it, and read by it from the API server.

Templates cannot make them: what renders a chart without a cluster (`helm template`, Argo CD) would make others each time. The operator's
pod does not mount them either, for it is who makes them: `keeping` writes what it read into a folder of the pod, where the rest of the
operator reads files. etcd's and the gateways' pods mount them and wait in ContainerCreating until they are there.
"""
