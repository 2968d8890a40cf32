"""Where callers connect: Envoy, and beside it the agent.

The agent is Envoy's control plane (`snapshot`, `delta`, `xds`) and the relay, the slow path for what Envoy alone
cannot do (`relay`, `serving`). Both read one routing table (`table`), which `watching` keeps like the store.
`bootstrap`, `resources` and `router.lua` are what Envoy is told.
"""
