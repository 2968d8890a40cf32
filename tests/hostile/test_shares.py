"""One namespace's callers fill the store with sessions, as fast as they are answered; another namespace begins sessions and steps them."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.errors import Code, DormouseError
from dormouse_testing.up import TOTAL, Up, missing, row, save_models, save_wide, system

QUOTA = 48 << 20
SIZE = 64 << 10  # bytes of a session of `wide`
AWAKE = "scaleToZeroAfter: 600s"
WIDE = TOTAL.replace("name: total", "name: wide, namespace: NAMESPACE").replace("total", "wide").replace("-1, 1]", "-1, 16384]")


@contextlib.contextmanager
def running(folder: Path, namespace: str) -> Iterator[Up]:
    """`total` in the namespace default, `wide` in `namespace`."""
    if reason := missing():
        unavailable(reason)
    save_models(folder)
    save_wide(folder / "wide.onnx", SIZE // 4)
    (folder / "total.yaml").write_text(TOTAL.replace("scaleToZeroAfter: 3s", AWAKE))
    (folder / "wide.yaml").write_text(WIDE.replace("NAMESPACE", namespace).replace("scaleToZeroAfter: 3s", AWAKE))
    with system(folder, "--etcd-quota", f"{QUOTA}") as up:
        up.wait_ready()
        yield up


def fill(up: Up, namespace: str) -> tuple[int, DormouseError | None]:
    """How many sessions of `wide` began until one was refused, and the refusal."""
    with Client(up.gateway) as client:
        for n in range(QUOTA // SIZE):
            try:
                client.infer(f"{namespace}/wide", {"x": row(1)}, session=f"s{n}", timeout=60)
            except DormouseError as error:
                return n, error
            time.sleep(0.01)
    return QUOTA // SIZE, None


class Neighbour:
    """Begins a session of `total`, steps it twice, and so on. `refused`: what it was told; `longest`: seconds of a call."""

    def __init__(self, up: Up) -> None:
        self.began = 0
        self.refused: list[str] = []
        self.longest = 0.0
        self._gateway = up.gateway
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with Client(self._gateway) as client:
            while not self._stop.wait(0.05):
                try:
                    for wanted in (1.0, 2.0, 3.0):
                        since = time.monotonic()
                        found = client.infer("total", {"x": row(1)}, session=f"n{self.began}", timeout=60).outputs["y"][0, 0]
                        self.longest = max(self.longest, time.monotonic() - since)
                        assert found == wanted
                    self.began += 1
                except (DormouseError, AssertionError) as error:
                    self.refused.append(str(error))

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(70)


def test_a_namespace_that_fills_the_store_stops_at_its_share_and_no_other_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, "hog") as up, Neighbour(up) as neighbour:
        up.until(lambda: neighbour.began > 2)
        began, refused = fill(up, "hog")
        print(f"{began} sessions of {SIZE} bytes began, of a quota of {QUOTA}: {refused}")
        assert refused is not None
        assert refused.code is Code.RESOURCE_EXHAUSTED
        assert "this namespace has more than its share" in refused.message
        assert 0.3 * QUOTA < began * SIZE < 0.7 * QUOTA
        before = neighbour.began
        up.until(lambda: neighbour.began > before + 20)
        with Client(up.gateway) as client:
            client.infer("hog/wide", {"x": row(1)}, session="s0", timeout=60)
    assert neighbour.refused == []
    print(f"the neighbour began {neighbour.began} sessions; its longest call took {neighbour.longest:.3f} s")


@pytest.mark.slow  # 15 s
def test_negative_control_in_one_namespace_it_takes_all_and_the_neighbour_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, "default") as up, Neighbour(up) as neighbour:
        up.until(lambda: neighbour.began > 2)
        began, refused = fill(up, "default")
        assert refused is not None
        assert "at most 70% are allowed" in refused.message
        assert began * SIZE > 0.6 * QUOTA
        up.until(lambda: any("of the store's quota" in text for text in neighbour.refused))
