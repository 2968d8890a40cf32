"""A model of the session protocol, small enough to look at every interleaving of it.

Two or three workers, a session or two, calls with copies, crashes, late and lost messages: `exploring.explore` visits every state that can
be reached and stops at the first that breaks a promise. Every rule is a field of `rules.Rules`, so the protocol and each of its negative
controls are the same code. What is modelled and what is not: `tests/model/README.md`.

The simulation (`sessions_sim`) plays the real loops on random schedules; this plays every schedule of a drawing of them. A rule that
changes is changed here first.
"""
