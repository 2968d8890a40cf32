"""Each function has a user of its own in the store while it lives, and no longer."""

from typing import Any

import pytest
from dormouse_core.keys import Keys
from dormouse_core.seams import StoreError
from dormouse_operator.kubernetes.objects.credentials import Credentials
from dormouse_operator.kubernetes.objects.manifests import store_password
from dormouse_operator.kubernetes.settings import ClusterSettings
from dormouse_testing.cluster_objects import entry
from dormouse_testing.manifests import onnx

KEYS = Keys("default")


class Users:
    """A store's users in a dictionary. `broken`: nothing can be written."""

    def __init__(self, *there: str) -> None:
        self.there = dict.fromkeys(there, "")
        self.broken = False
        self.ensured = 0

    async def ensure(self, user: str, password: str, grants: Any) -> None:
        if self.broken:
            raise StoreError("no leader")
        self.ensured += 1
        self.there[user] = password
        self.grants = grants

    async def remove(self, user: str) -> None:
        if self.broken:
            raise StoreError("no leader")
        del self.there[user]

    async def names(self, prefix: str) -> list[str]:
        return [name for name in self.there if name.startswith(prefix)]


CHOSEN = ClusterSettings(store_secret=b"root")


def credentials(users: Any) -> Credentials:
    return Credentials(users, KEYS, CHOSEN)


async def test_a_function_gets_its_own_user_once_with_the_password_of_its_secret() -> None:
    users, found = Users(), entry(onnx())
    kept = credentials(users)
    await kept.ensure(found)
    await kept.ensure(found)
    assert users.there == {"dormouse/default/u": store_password(found, CHOSEN)}
    assert users.ensured == 1
    written = [grant.key for grant in users.grants if grant.write]
    assert len(written) == 2
    assert all("default/vad/u" in key for key in written), "its map and its data, and nothing of another's"
    [read] = [grant for grant in users.grants if not grant.write]
    assert (read.key.endswith("functions/default/vad"), read.prefix) == (True, False), "its own entry, and not that of a longer name"


async def test_what_was_not_done_is_tried_again() -> None:
    users = Users()
    kept = credentials(users)
    users.broken = True
    with pytest.raises(StoreError):
        await kept.ensure(entry(onnx()))
    users.broken = False
    await kept.ensure(entry(onnx()))
    assert users.ensured == 1


async def test_users_of_functions_that_are_gone_go_and_nobody_elses_do() -> None:
    users = Users("dormouse/default/gone", "dormouse/default/u", "dormouse/other/gone", "dormouse-gateway/default", "root")
    await credentials(users).prune(lambda: {"u"})
    assert set(users.there) == {"dormouse/default/u", "dormouse/other/gone", "dormouse-gateway/default", "root"}


async def test_a_function_that_comes_while_users_are_listed_keeps_its_user() -> None:
    """Who lives is asked after the list was read: a function is registered before it has a user."""
    users, living = Users("dormouse/default/new"), set[str]()

    class Slow(Users):
        async def names(self, prefix: str) -> list[str]:
            found = await users.names(prefix)
            living.add("new")
            return found

    slow = Slow(*users.there)
    await credentials(slow).prune(lambda: living)
    assert set(slow.there) == {"dormouse/default/new"}


async def test_one_that_comes_back_after_its_user_went_gets_it_again() -> None:
    users = Users()
    kept = credentials(users)
    await kept.ensure(entry(onnx()))
    await kept.prune(set)
    await kept.ensure(entry(onnx()))
    assert users.ensured == 2


async def test_a_store_without_users_is_asked_nothing() -> None:
    kept = credentials(None)
    await kept.ensure(entry(onnx()))
    await kept.prune(set)
