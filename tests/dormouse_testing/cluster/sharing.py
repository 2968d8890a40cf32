"""One installation of Dormouse for all who need nothing special of it, one after the other."""

import contextlib
from collections.abc import Callable, Iterator

from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.functions import Dormouse, functions, installation


class Shared:
    """Made when it is first needed, and again after its end: for who needs the cluster alone, or because somebody failed with it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stack = contextlib.ExitStack()
        self._installed = self._used = False

    @contextlib.contextmanager
    def functions(self, space: str, failures: Callable[[], int]) -> Iterator[Dormouse]:
        """A namespace in it. After a failure meanwhile, of which `failures` is the count, the installation ends: whatever broke it, or left
        it broken, the next has a new one."""
        before = failures()
        self._used = True
        try:
            if not self._installed:
                self._stack.enter_context(installation(self._cluster))
                self._installed = True
            with functions(self._cluster, space) as dormouse:
                yield dormouse
        except BaseException:
            self._used = False
            self.end()
            raise
        self._used = False
        if failures() > before:
            self.end()

    def end(self) -> None:
        """Nothing of Dormouse is on the cluster."""
        assert not self._used, "functions are in it"
        self._installed = False
        self._stack.close()
