"""Dormouse on Kubernetes: `InferenceFunction` objects in, workers' pods out.

What runs only here; the coordinator, the autoscaler and everything else that leads are the same as on one machine. The leader's process
alone runs any of it, except `secrets`.

* `objects` knows every InferenceFunction: kopf's watch brings news at once (`watching`), and a complete list every half minute brings what
  a deaf watch lost, and the one proof that an object is gone.
* `object_entries` keeps `functions/` in the store as the objects say; an object's uid is its function's.
* `manifests` (pure) makes what a function consists of in the cluster; `applying` keeps it so: created, changed only where it differs, never
  taken from somebody else.
* `provider` is the `dormouse_core.seams.Provider` of a cluster: a Deployment for each revision, pods as instances, and in `problems` (pure)
  why a pod cannot run.
* `losing` sees which nodes are lost, and `stranded` (pure) says what becomes of their pods.
* `secrets` keeps the passwords and certificates of the chart's etcd, which are there before anybody can lead.
* `statuses` (pure) says in the object's status what is true; `reconciling` runs one object's round, from whatever state it is in.

No finalizers: objects go by owner references, and what lies in the store goes when a complete list lacks the uid. Nothing is written where
nothing changed.
"""
