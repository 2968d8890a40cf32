"""What a cluster's provider orders: only a difference is written, and whom it costs least to lose goes first."""

import pytest
from dormouse_core.errors import Unavailable
from dormouse_operator.kubernetes.api.http import ApiError
from dormouse_operator.kubernetes.api.kinds import PODS
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.objects.object_entries import timestamp
from dormouse_operator.kubernetes.pods.provider import LONGEST_HINT
from dormouse_proto import state_pb2
from dormouse_testing.cluster_objects import NOW, deployment, pod
from dormouse_testing.provider_world import REASON, RUNS, World, function


async def test_only_a_difference_is_written_and_the_answer_is_believed_before_the_watch_tells() -> None:
    world = World()
    await world.heard(deployment(1))
    assert await world.apply(1) == []
    assert await world.apply(3) == [("f-r1", "patched")]
    assert await world.apply(3) == []
    assert len(await world.seen()) == 3


async def test_a_deployment_that_is_not_there_is_ordered_from_the_reconciler_and_its_workers_are_counted() -> None:
    world = World()
    await world.heard()
    assert await world.apply(2) == []
    assert world.missing == ["u"]
    assert [(each.name, each.exited) for each in await world.seen()] == [("f-r1/0", False), ("f-r1/1", False)]
    world.problem.append(REASON)
    assert [each.problem for each in await world.seen()] == [REASON, REASON], "callers are told why it cannot be made"


async def test_when_it_comes_what_was_ordered_of_it_is_not_counted_beside_it() -> None:
    world = World()
    await world.heard()
    await world.apply(2)
    await world.heard(deployment(0))
    assert await world.seen() == []
    assert await world.apply(2) == [("f-r1", "patched")]
    assert len(await world.seen()) == 2


async def test_one_that_is_being_deleted_is_not_there() -> None:
    world = World()
    await world.heard(deployment(1, deletionTimestamp=timestamp(NOW)))
    await world.apply(1)
    assert (world.missing, [each.name for each in await world.seen()]) == (["u"], ["f-r1/0"])


async def test_nothing_is_asked_any_more_of_a_function_that_went() -> None:
    world = World()
    await world.heard()
    await world.apply(2)
    world.provider.forget("u")
    assert await world.seen() == []


@pytest.mark.parametrize("gone", [function(deleting=True), function(revision="")])
async def test_a_deployment_of_a_deleted_function_goes_and_one_of_a_sleeping_function_stays(gone: state_pb2.FunctionEntry) -> None:
    world = World()
    await world.heard(deployment(1))
    assert await world.apply(0) == [("f-r1", "patched")]
    assert await world.apply(0, of=gone) == [("f-r1", "deleted")]


async def test_a_server_that_refuses_is_unavailable_with_its_words() -> None:
    world = World()
    await world.heard(deployment(1))
    world.api.refuse = ApiError(403, "Forbidden", "no right to patch deployments")
    with pytest.raises(Unavailable, match="refuses to scale ns/f to 2: no right to patch deployments"):
        await world.apply(2)
    assert len(await world.seen()) == 1


# ------------------------------------------------------------------------------------------------------------------ whom to lose


def costs(world: World) -> dict[str, int]:
    """Of pods; the lowest goes first."""
    annotated = {name: each["metadata"].get("annotations", {}) for (plural, _, name), each in world.api.objects.items() if plural == "pods"}
    return {name: int(found[names.COST]) for name, found in annotated.items() if names.COST in found}


async def test_whom_it_costs_least_to_lose_goes_first() -> None:
    world = World()
    await world.heard(deployment(4), *(pod(f"p{n}", containers=RUNS) for n in range(4)))
    written = await world.apply(2, "r1", "p3", "p1", "p0")
    found = costs(world)
    assert found.keys() == {"p3", "p1"}, "as many as are too many"
    assert found["p3"] < found["p1"] < 0
    assert written[-1] == ("f-r1", "patched"), "the hint stands before the count"


@pytest.mark.parametrize("count", [0, 4, 6])
async def test_no_hint_is_written_where_all_go_or_none(count: int) -> None:
    world = World()
    await world.heard(deployment(4), *(pod(f"p{n}", containers=RUNS) for n in range(4)))
    await world.apply(count, "r1", "p3")
    assert costs(world) == {}


async def test_a_victim_that_went_meanwhile_is_no_trouble() -> None:
    world = World()
    await world.heard(deployment(3), *(pod(f"p{n}", containers=RUNS) for n in range(3)))
    await world.api.delete(PODS, "ns", "p2", uid="uid-p2")
    assert await world.apply(1, "r1", "unknown", "p2") == [("f-r1", "patched")]


async def test_an_order_gives_so_many_hints_and_no_more() -> None:
    world = World()
    await world.heard(deployment(150), *(pod(f"p{n}", containers=RUNS) for n in range(150)))
    await world.apply(1, "r1", *(f"p{n}" for n in range(149)))
    found = costs(world)
    assert (len(found), max(found.values())) == (LONGEST_HINT, -2)
