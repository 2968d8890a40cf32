"""One world: the real leader, relays with their tables and streams, and workers' sessions on one simulated loop over one store in memory.

`world.run(seed)` plays one history and raises `history.Violation` if a promise was broken. Doubles are what lies between the processes (the
connections that gRPC and Envoy make), and the provider, which starts and ends simulated workers. What a session's history must be is judged
by `sessions_sim.history`, as where the sessions play alone.

    python -m dormouse_testing.one_world 1234          # one seed, with its trace
"""
