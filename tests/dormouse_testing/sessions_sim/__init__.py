"""The session protocol's real loops in a simulated world: several workers, a leader, clients that retry, a store and a network that fail.

`world.run(seed)` plays one history and raises `history.Violation` if a promise was broken. A seed is reproducible: same seed, same history.

    python -m dormouse_testing.sessions_sim 1234          # one seed, with its trace
"""
