"""Members of the chart's etcd: each gets into its cluster by a program that runs before it (`joining`), and is given its vote by the
operator (`admitting`). What either does is `dormouse_core.members`' to say."""
