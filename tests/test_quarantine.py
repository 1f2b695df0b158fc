"""The quarantine, and the routes through which an operator sees it."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from frame_samples import digests, frame, frame_of, request, span_ids, until

from collector.admin import metrics_router, quarantine_router
from collector.frames import Frame, encode_frame, read_frame
from collector.ledger import Ledger
from collector.quarantine import NotQuarantined, Quarantine, normalise
from collector.status import WalFull
from collector.wal import Wal

SEGMENT_ID = "1700000000000000000-abcdef"


class House:
    """A quarantine, a WAL to replay into, and a client of the API in front of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ledger = Ledger()
        self.quarantine = Quarantine(directory / "quarantine", self.ledger)
        self.wal = Wal(
            directory / "wal", self.ledger, flush_interval_s=3600, quarantine_bytes=self.quarantine.bytes_on_disk
        )
        self.append = self.wal.append
        app = FastAPI()
        app.include_router(quarantine_router(self.quarantine, self._append))
        app.include_router(metrics_router(self.ledger.registry))
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off"))
        self._serving = threading.Thread(target=self._server.run)
        self._serving.start()
        until(lambda: self._server.started)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)

    def _append(self, each: Frame) -> Future[None]:
        return self.append(each)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._serving.join(10)
        self.wal.release()

    def put(self, index: int, each: Frame, reason: str = "cannot parse") -> str:
        path = self.directory / "one"
        path.write_bytes(b"".join(encode_frame(each, 1_700_000_000_000_000_001)))
        stored = read_frame(path, 0)
        assert stored is not None
        self.quarantine.put(SEGMENT_ID, index, stored, reason)
        return f"{SEGMENT_ID}.{index}"

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "quarantine").iterdir())

    def in_wal(self) -> list[bytes]:
        return digests((self.directory / "wal").glob("*.open"))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    home = House(tmp_path)
    yield home
    home.close()


def test_a_frame_is_kept_with_its_reason_over_a_restart(house: House) -> None:
    each = frame(3, tenant="acme")
    frame_id = house.put(7, each, "Code: 33. cannot read all data")
    assert house.files() == [f"{frame_id}.frame", f"{frame_id}.json"]
    again = Quarantine(house.directory / "quarantine", Ledger())
    assert again.get(frame_id) == house.quarantine.get(frame_id)
    (entry,) = again.page(limit=10)
    assert (entry.id, entry.tenant, entry.spans, entry.bytes) == (frame_id, "acme", 3, len(each.request))
    assert entry.reason == "Code: 33. cannot read all data"
    assert entry.received_unix_nano == 1_700_000_000_000_000_001
    assert again.bytes_on_disk() == house.quarantine.bytes_on_disk() > len(each.request)


def test_putting_a_frame_twice_keeps_one(house: House) -> None:
    house.put(1, each := frame())
    before = house.quarantine.bytes_on_disk()
    house.put(1, each, "another")
    assert len(house.files()) == 2
    assert abs(house.quarantine.bytes_on_disk() - before) < 20
    house.quarantine.drop(f"{SEGMENT_ID}.1")
    assert house.quarantine.bytes_on_disk() == 0


def test_a_frame_that_a_crash_left_without_its_entry_is_cleared_away(house: House) -> None:
    frame_id = house.put(1, frame())
    (house.directory / "quarantine" / f"{frame_id}.json").unlink()
    (house.directory / "quarantine" / "x.json.tmp").write_bytes(b"{")
    assert Quarantine(house.directory / "quarantine", Ledger()).page(limit=10) == []
    assert house.files() == []


def test_pages_follow_one_another(house: House) -> None:
    ids = [house.put(index, frame()) for index in (2, 10, 1, 33, 4)]
    assert [entry.id for entry in house.quarantine.page(limit=10)] == sorted(ids, key=lambda i: int(i.split(".")[1]))
    seen, cursor, pages = [], "", 0
    while cursor is not None:
        page = house.client.get("/api/v1/quarantine", params={"limit": 2, "cursor": cursor}).json()
        seen += [entry["id"] for entry in page["frames"]]
        cursor = page["next_cursor"]
        pages += 1
    assert pages == 3
    assert seen == sorted(ids, key=lambda i: int(i.split(".")[1]))
    assert house.client.get("/api/v1/quarantine", params={"limit": 1001}).status_code == 422


def test_show_says_what_is_in_a_frame(house: House) -> None:
    each = frame(30, tenant="acme", name="invoke_agent")
    body = house.client.get(f"/api/v1/quarantine/{house.put(0, each)}").json()
    assert body["tenant"] == "acme"
    assert body["spans"] == 30
    assert body["received_unix_nano"] == "1700000000000000001"
    summary = body["request"]
    assert (summary["decodes"], summary["error"], summary["services"]) == (True, "", ["support"])
    assert len(summary["spans"]) == 20, "bounded"
    assert summary["spans"][0] == {
        "trace_id": "00" * 15 + "01",
        "span_id": span_ids(each.request)[0].hex(),
        "name": "invoke_agent",
    }


def test_replay_sends_a_frame_through_the_wal_again(house: House) -> None:
    each = frame(3, tenant="acme")
    frame_id = house.put(0, each)
    answer = house.client.post(f"/api/v1/quarantine/{frame_id}/replay")
    assert answer.status_code == 200
    assert answer.json()["id"] == frame_id
    assert house.in_wal() == [each.digest]
    assert house.files() == []
    assert house.quarantine.bytes_on_disk() == 0
    spans = house.ledger.spans()["acme"]
    assert (spans.received, spans.in_wal) == (3, 3)
    assert house.client.post(f"/api/v1/quarantine/{frame_id}/replay").status_code == 404


def test_replay_normalises_what_it_can(house: House) -> None:
    body = request()
    assert normalise(body, "traces") is None, "it is normal already"
    twice = body + b"\x0a\x0a\x0a\x08\x0a\x06\x12\x04\x0a\x00\x10\x01"  # a value with two members: "" and true
    normal = normalise(twice, "traces")
    assert normal is not None
    assert b"\x0a\x00\x10\x01" not in normal
    assert span_ids(normal) == span_ids(body)
    house.client.post(f"/api/v1/quarantine/{house.put(0, frame_of(twice))}/replay")
    assert house.in_wal() == [frame_of(normal).digest]


def test_replay_of_what_does_not_decode_sends_it_as_it_is(house: House) -> None:
    garbage = frame_of(b"\xff\xff garbage", spans=2)
    house.client.post(f"/api/v1/quarantine/{house.put(0, garbage)}/replay")
    assert house.in_wal() == [garbage.digest]


def test_a_frame_stays_when_the_wal_refuses_it(house: House) -> None:
    frame_id = house.put(0, frame())

    def full(each: Frame):
        raise WalFull("cannot take the request: the write-ahead log is full")

    house.append = full
    answer = house.client.post(f"/api/v1/quarantine/{frame_id}/replay")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert answer.json() == {"error": {"code": 503, "message": "cannot take the request: the write-ahead log is full"}}
    assert house.quarantine.get(frame_id)
    assert not house.ledger.spans()


def test_two_replays_at_once_send_it_once(house: House) -> None:
    frame_id = house.put(0, each := frame())
    codes: list[int] = []

    def replay() -> None:
        codes.append(house.client.post(f"/api/v1/quarantine/{frame_id}/replay").status_code)

    threads = [threading.Thread(target=replay) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200, 404, 404, 404]
    assert house.in_wal() == [each.digest]


def test_drop_removes_a_frame(house: House) -> None:
    frame_id = house.put(0, frame())
    answer = house.client.delete(f"/api/v1/quarantine/{frame_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert house.files() == []
    assert house.client.delete(f"/api/v1/quarantine/{frame_id}").status_code == 404


@pytest.mark.parametrize(
    "frame_id", ["x", "..%2F..%2Fetc%2Fpasswd", "..", f"{SEGMENT_ID}.0", f"{SEGMENT_ID}.0.json", f"{SEGMENT_ID}.0%00"]
)
def test_an_id_that_is_none_is_not_found(house: House, frame_id: str) -> None:
    (house.directory / "x.json").write_text("{}")
    for method, path in (("GET", ""), ("POST", "/replay"), ("DELETE", "")):
        answer = house.client.request(method, f"/api/v1/quarantine/{frame_id}{path}")
        assert answer.status_code in (404, 405), frame_id
    if frame_id not in ("..", "..%2F..%2Fetc%2Fpasswd"):  # these are not our routes
        message = house.client.get(f"/api/v1/quarantine/{frame_id}").json()["error"]["message"]
        assert message.startswith("cannot find frame")
    with pytest.raises(NotQuarantined):
        house.quarantine.get("../quarantine/x")


def test_a_damaged_frame_can_be_listed_and_dropped_but_not_replayed(house: House) -> None:
    frame_id = house.put(0, frame())
    (house.directory / "quarantine" / f"{frame_id}.frame").write_bytes(bytes(50))
    assert len(house.quarantine.page(limit=10)) == 1
    answer = house.client.post(f"/api/v1/quarantine/{frame_id}/replay")
    assert answer.status_code == 404
    assert "drop it" in answer.json()["error"]["message"]
    assert house.client.delete(f"/api/v1/quarantine/{frame_id}").status_code == 204


def test_metrics_are_served_in_prometheus_format(house: House) -> None:
    house.put(0, frame())
    house.ledger.admitted("acme", received=2)
    answer = house.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'spanhouse_spans_received_total{tenant="acme"} 2.0' in answer.text
    assert f"spanhouse_quarantine_bytes {house.quarantine.bytes_on_disk()}" in answer.text.replace(".0", "")


def test_openapi_names_the_errors(house: House) -> None:
    paths = house.client.get("/openapi.json").json()["paths"]
    assert set(paths["/api/v1/quarantine/{frame_id}/replay"]["post"]["responses"]) == {
        "200",
        "404",
        "422",
        "429",
        "503",
    }
