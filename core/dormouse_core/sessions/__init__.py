"""The session protocol as a machine: what one worker decides about its sessions, without I/O.

    submit -> machine (whose is the shard?) -> turns (when, on which state?) -> Run … ran -> groups (one transaction for many) -> Tell

Events are calls: `submit`, `ran`, `listed`, `shard_changed`, `leave` and the like. What is to be done about them is in an `Outbox`, as
commands, when the call returns; whoever drives the machine does it (`dormouse_worker.sessions`). What waits for the store or for time is a
*plan*: a generator that yields what it waits for and is sent what came of it. Between two of its lines nothing else happens; at each yield
anything may. So the interruptions of a plan are its yields, and `tests/simulation/test_interruptions.py` plays them.

| part | decides |
| --- | --- |
| `machine` | whose each shard is: follows the map and reads, empties memories, refuses what belongs elsewhere |
| `ownership` | one shard's entry: a table of states |
| `moves` | when a shard stops, and its handoff |
| `turns` | the order of a session's steps, what runs, what is acknowledged, what leaves memory |
| `loading` | reading records behind the fence |
| `groups` | committing steps together, and what became of it |
| `ringing` | when alarms are due, and which are looked at now |
| `census` | what lies in the store of the shards that are owned, and whether a session may begin |
| `memory`, `boundary`, `arrays`, `names` | what is kept, what crosses, tensors and records, names of sessions |

Each imports only what stands below it.
"""
