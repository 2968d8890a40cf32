"""``python -m dormouse_operator.kubernetes.secrets``: before the operator's start, makes the Secrets of the chart's etcd that are not there
and writes the files that the operator reads."""

import asyncio
import sys
from collections.abc import Sequence

from dormouse_core.errors import DormouseError
from dormouse_kit import log
from dormouse_kit.clock import SystemClock

from dormouse_operator.kubernetes import secret_options
from dormouse_operator.kubernetes.api import access
from dormouse_operator.kubernetes.api.http import HttpApi
from dormouse_operator.kubernetes.secrets.keeping import Keeper


async def run(chosen: secret_options.SecretOptions) -> int:
    try:
        api = HttpApi(await access.find())
    except DormouseError as error:
        log.warning("the store's Secrets cannot be looked after", error=error.message)
        return 1
    try:
        await Keeper(api, SystemClock(), chosen.wanted, chosen.folder).first()
    finally:
        await api.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    log.setup("operator")
    return asyncio.run(run(secret_options.parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    sys.exit(main())
