"""Who may reach what in the store of a cluster: the operator as root, gateways as one user, each function's workers as one of their own.

A gateway reads what it routes by and writes nothing but its own presence; a worker reaches its function's map and data, and
reads its entry (what its revision was proved with). So neither a
handler, which is user code, nor a gateway, which everybody may call, can change what others see.
"""

from dormouse_core.keys import Function, Keys
from dormouse_kit.etcd.users import Grant, Users

GATEWAY = "dormouse-gateway"


def gateway_grants(keys: Keys) -> list[Grant]:
    reads = [Grant(keys.functions, write=False), Grant(keys.maps, write=False), Grant(keys.leader, write=False)]
    return [*reads, Grant(keys.written, prefix=False, write=False), Grant(keys.gateways)]


def function_grants(keys: Keys, function: Function) -> list[Grant]:
    own = Grant(keys.function(function.namespace, function.name), prefix=False, write=False)
    return [Grant(keys.map(function)), Grant(keys.data(function)), own]


async def prepare(users: Users, keys: Keys, gateway_password: str) -> None:
    """At every start of the operator: the store may be a new one."""
    await users.prepare()
    await users.ensure(gateway_user(keys), gateway_password, gateway_grants(keys))


def gateway_user(keys: Keys) -> str:
    """Installations may share a store."""
    return f"{GATEWAY}/{keys.installation}"
