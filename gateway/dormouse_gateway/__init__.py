"""The gateway: the agent (Envoy's control plane and the relay) and the Lua filter of the fast path."""
