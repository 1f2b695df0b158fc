"""What is let in. The requests are built with opentelemetry-proto; the WAL is a sink in memory."""

import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue
from otlp_building import Intake, attribute, body, request, span
from xxhash import xxh3_128_digest

from collector.admission import Receipt
from collector.sifting import sift
from collector.status import BadRequest, Overloaded, Refusal, Retryable, TooLarge, TooManyTenants, WalFull

BAD_IDS = {
    "no trace id": {"trace_id": b""},
    "short trace id": {"trace_id": b"t" * 15},
    "long trace id": {"trace_id": b"t" * 17},
    "zero trace id": {"trace_id": bytes(16)},
    "no span id": {"span_id": b""},
    "short span id": {"span_id": b"s" * 7},
    "trace id for a span id": {"span_id": b"s" * 16},
    "zero span id": {"span_id": bytes(8)},
    "short parent": {"parent_span_id": b"p"},
    "long parent": {"parent_span_id": b"p" * 16},
}


def admit(intake: Intake, data: bytes, tenant: str = "default") -> Receipt:
    return intake.admission.admit(data, tenant).result(5)


def with_bad_string(data: bytes, good: bytes) -> bytes:
    """The same request with a byte of `good` (which must be in it once) replaced by one that UTF-8 does not know."""
    assert data.count(good) == 1
    return data.replace(good, good[:-1] + b"\xff")


# --- good requests ------------------------------------------------------------------------------------------------


def test_a_good_request_is_appended_as_it_came():
    intake = Intake()
    data = body(span(1), span(2))
    assert admit(intake, data, "team-a") == Receipt()
    (frame,) = intake.sink.frames
    assert (frame.tenant, frame.items, frame.request) == ("team-a", 2, data)
    assert frame.digest == xxh3_128_digest(data)
    assert intake.counts("team-a") == (2, 0, 0, 2)


def test_fields_that_nobody_knows_yet_stay_in_the_bytes():
    data = body(span(1)) + b"\xba\x3e\x05later"
    intake = Intake()
    admit(intake, data)
    assert intake.sink.frames[0].request == data


@pytest.mark.parametrize("data", [b"", b"\x0a\x00", b"\x0a\x02\x12\x00"], ids=["nothing", "resource", "scope"])
def test_a_request_without_spans_is_a_success_that_stores_nothing(data):
    intake = Intake()
    assert admit(intake, data) == Receipt()
    assert not intake.sink.frames
    assert not intake.ledger.spans()


def test_any_value_is_taken_for_an_attribute():
    values = [
        AnyValue(),
        AnyValue(bytes_value=b"\xff\0"),
        AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(string_value="a"), AnyValue()])),
        AnyValue(kvlist_value={"values": [{"key": "k", "value": {"bool_value": True}}]}),
        AnyValue(string_value="x" * 10_000_000),
    ]
    intake = Intake()
    data = body(span(1, attributes=[attribute("same key", value) for value in values], kind=99, flags=0xFFFFFFFF))
    assert admit(intake, data) == Receipt()
    assert intake.sink.frames[0].request == data


def test_no_depth_of_nesting_is_too_deep():
    value = AnyValue(int_value=1).SerializeToString()
    for _ in range(5000):
        for tag in (b"\x0a", b"\x2a"):
            value = tag + length(value) + value
    # AnyValue ← KeyValue.value ← Span.attributes, behind the valid span's own bytes
    keyed = b"\x12" + length(value) + value
    data = in_a_request(span(1).SerializeToString() + b"\x4a" + length(keyed) + keyed)
    intake = Intake()
    assert admit(intake, data) == Receipt()
    assert intake.sink.frames[0].request == data


def length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


def in_a_request(span_bytes: bytes) -> bytes:
    scope_spans = b"\x12" + length(span_bytes) + span_bytes
    resource_spans = b"\x12" + length(scope_spans) + scope_spans
    return b"\x0a" + length(resource_spans) + resource_spans


def test_times_of_every_kind_are_let_in():
    times = [(0, 0), (5, 0), (5, 4), (2**64 - 1, 2**64 - 1), (10_413_792_000 * 10**9, 10_413_792_001 * 10**9)]
    spans = [span(i, start_time_unix_nano=s, end_time_unix_nano=e) for i, (s, e) in enumerate(times)]
    assert admit(Intake(), body(*spans)) == Receipt()


@pytest.mark.parametrize(
    "data",
    [
        body(*(span(i) for i in range(1, 100_001))),
        b"".join(body(span(i), service=f"s{i}") for i in range(1, 10_001)),
        body(span(1, attributes=[attribute(f"k{i}", AnyValue(int_value=i)) for i in range(10_000)])),
        body(span(1, events=[{"name": "e"}] * 100_000, links=[{"flags": 1}] * 100_000)),
    ],
    ids=["100k spans", "10k resources", "10k attributes", "100k events and links"],
)
def test_a_request_of_very_many_is_one_frame(data):
    intake = Intake()
    started = time.monotonic()
    assert admit(intake, data) == Receipt()
    assert time.monotonic() - started < 5
    assert intake.sink.frames[0].request == data


# --- one bad span beside good ones --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS)
def test_a_bad_id_rejects_its_span_only(bad):
    intake = Intake()
    receipt = admit(intake, body(span(1), span(2, **bad), span(3)))
    assert receipt.rejected == 1
    assert "resource_spans[0].scope_spans[0].spans[1]" in receipt.message
    assert next(iter(bad)) in receipt.message
    assert intake.sink.names() == ["span 1", "span 3"]
    assert intake.sink.frames[0].items == 2
    assert intake.sink.frames[0].digest == xxh3_128_digest(intake.sink.frames[0].request)
    assert intake.counts() == (3, 1, 0, 2)


def test_a_parent_of_nothing_and_a_parent_of_zeros_are_let_in():
    assert admit(Intake(), body(span(1, parent_span_id=b""), span(2, parent_span_id=bytes(8)))) == Receipt()


def test_the_spans_that_stay_are_unchanged_and_in_order():
    good = [span(i, attributes=[attribute("a", AnyValue(double_value=0))], kind=i) for i in range(1, 200)]
    mixed = [one for i, one in enumerate(good) for one in ([span(0, trace_id=b"x")] * (i % 3) + [one])]
    intake = Intake()
    assert admit(intake, body(*mixed)).rejected == len(mixed) - len(good)
    assert ExportTraceServiceRequest.FromString(intake.sink.frames[0].request) == request(*good)


@pytest.mark.parametrize(
    ("where", "bad"),
    [
        ("name", span(2, name="spoilt")),
        ("trace_state", span(2, trace_state="spoilt")),
        ("status.message", span(2, status={"message": "spoilt"})),
        ("attributes[0].key", span(2, attributes=[attribute("spoilt", AnyValue(int_value=1))])),
        ("attributes[0].value.string_value", span(2, attributes=[attribute("k", AnyValue(string_value="spoilt"))])),
        ("events[1].name", span(2, events=[{}, {"name": "spoilt"}])),
        ("links[0].trace_state", span(2, links=[{"trace_state": "spoilt"}])),
    ],
)
def test_a_string_that_is_not_utf_8_rejects_its_span_only(where, bad):
    intake = Intake()
    receipt = admit(intake, with_bad_string(body(span(1), bad, span(3)), b"spoilt"))
    assert receipt.rejected == 1
    assert f"spans[1]: {where} is not UTF-8" in receipt.message
    assert intake.sink.names() == ["span 1", "span 3"]
    assert intake.counts() == (3, 1, 0, 2)


def test_bytes_need_not_be_utf_8():
    data = body(span(1, attributes=[attribute("k", AnyValue(bytes_value=b"\xff\xfe"))], links=[{"trace_id": b"\xff"}]))
    assert admit(Intake(), data) == Receipt()


@pytest.mark.parametrize("part", ["resource", "resource_schema", "scope", "scope_schema"])
def test_a_bad_resource_or_scope_condemns_its_spans_and_no_others(part):
    message = request(span(1), span(2))
    resource_spans = message.resource_spans[0]
    if part == "resource":
        resource_spans.resource.attributes.append(attribute("k", AnyValue(string_value="spoilt")))
    elif part == "resource_schema":
        resource_spans.schema_url = "spoilt"
    elif part == "scope":
        resource_spans.scope_spans[0].scope.name = "spoilt"
    else:
        resource_spans.scope_spans[0].schema_url = "spoilt"
    message.resource_spans.extend(request(span(3), span(4, trace_id=b"")).resource_spans)
    intake = Intake()
    receipt = admit(intake, with_bad_string(message.SerializeToString(), b"spoilt"))
    assert receipt.rejected == 3
    assert "is not UTF-8" in receipt.message
    assert "trace_id must be 16 bytes" in receipt.message
    assert intake.sink.names() == ["span 3"]
    assert b"spoil" not in intake.sink.frames[0].request
    assert intake.counts() == (4, 3, 0, 1)


def test_a_request_of_bad_spans_only_is_a_partial_success_that_stores_nothing():
    intake = Intake()
    assert admit(intake, body(span(1, trace_id=b""), span(2, span_id=b""))).rejected == 2
    assert not intake.sink.frames
    assert intake.counts() == (2, 2, 0, 0)


def test_the_message_stays_short_however_much_is_wrong():
    started = time.monotonic()
    receipt = admit(Intake(), body(*(span(i, trace_id=b"\xff" * (i % 15), name="x") for i in range(10_000))))
    assert receipt.rejected == 10_000
    assert "9992 more" in receipt.message
    assert len(receipt.encode()) < 2100
    assert time.monotonic() - started < 5


def test_a_receipt_is_encoded_as_the_protocol_wants():
    assert Receipt().encode() == b""
    assert Receipt().encode(json=True) == b"{}"
    assert Receipt(3, "why").encode(json=True) == b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "why"}}'


# --- bad requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        body(span(1))[:-1],
        b'{"resourceSpans":[]}',
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0f\x00",
        b"\x00\x01",
        b"\x0b",
        b"\xff" * 40,
    ],
    ids=["cut", "JSON", "length of gigabytes", "wire type", "field 0", "open group", "no varint"],
)
def test_what_cannot_be_decoded_is_a_bad_request(data):
    intake = Intake()
    with pytest.raises(BadRequest):
        intake.admission.admit(data, "default")
    assert not intake.sink.frames
    assert not intake.ledger.spans()


def test_a_request_over_the_limits_is_too_large():
    with pytest.raises(TooLarge, match="1000 is the limit"):
        Intake(request_bytes_max=1000).admission.admit(bytes(1001), "default")
    for bad in (span(1), span(1, trace_id=b"")):
        with pytest.raises(TooLarge, match="2 is the limit"):
            Intake(request_spans_max=2).admission.admit(body(*[bad] * 3), "default")


def test_limits_that_could_refuse_for_ever_are_refused_at_start():
    with pytest.raises(ValueError, match="in_flight_bytes_max"):
        Intake(request_bytes_max=100, in_flight_bytes_max=100)


@pytest.mark.parametrize("tenant", ["", "a b", "é", "a" * 65, "a\n", "../x", "a/b"])
def test_a_tenant_that_is_no_name_is_a_bad_request(tenant):
    with pytest.raises(BadRequest, match="x-spanhouse-tenant"):
        Intake().admission.admit(body(span(1)), tenant)


def test_the_number_of_tenants_is_bounded():
    intake = Intake(tenants_max=2)
    for tenant in ("a", "b", "a"):
        admit(intake, body(span(1)), tenant)
    with pytest.raises(TooManyTenants):
        intake.admission.admit(body(span(1)), "c")
    # A tenant is met when something of it is kept, so that bad requests do not use the number up.
    assert admit(Intake(tenants_max=0), b"", "c") == Receipt()


# --- retransmits --------------------------------------------------------------------------------------------------


def test_a_retransmit_is_acknowledged_and_not_stored_again():
    intake = Intake()
    data = body(span(1), span(2))
    assert [admit(intake, data) for _ in range(3)] == [Receipt()] * 3
    assert len(intake.sink.frames) == 1
    assert intake.counts() == (6, 0, 4, 2)


def test_a_retransmit_of_a_request_with_a_bad_span_hears_the_same_again():
    intake = Intake()
    data = body(span(1), span(2, trace_id=b""))
    assert admit(intake, data) == admit(intake, data)
    assert len(intake.sink.frames) == 1
    assert intake.counts() == (4, 2, 1, 1)


def test_the_same_bytes_of_another_tenant_are_another_request():
    intake = Intake()
    for tenant in ("a", "b"):
        admit(intake, body(span(1)), tenant)
    assert [frame.tenant for frame in intake.sink.frames] == ["a", "b"]


def test_a_retransmit_is_not_acknowledged_before_the_first_delivery_is_durable():
    intake = Intake()
    intake.sink.hold = True
    first, again = (intake.admission.admit(body(span(1)), "default") for _ in range(2))
    assert len(intake.sink.frames) == 1
    assert not first.done()
    assert not again.done()
    assert not intake.ledger.spans()
    intake.sink.held[0].set_result(None)
    assert (first.result(1), again.result(1)) == (Receipt(), Receipt())
    assert intake.counts() == (2, 0, 1, 1)


def test_when_the_first_delivery_fails_the_next_is_appended_anew():
    intake = Intake()
    intake.sink.hold = True
    first, again = (intake.admission.admit(body(span(1)), "default") for _ in range(2))
    intake.sink.held[0].set_exception(WalFull("cannot write"))
    for receipt in (first, again):
        with pytest.raises(WalFull):
            receipt.result(1)
    assert not intake.ledger.spans()
    intake.sink.hold = False
    assert admit(intake, body(span(1))) == Receipt()
    assert len(intake.sink.frames) == 2
    assert intake.counts() == (1, 0, 0, 1)


def test_when_the_wal_takes_nothing_nothing_is_remembered():
    intake = Intake()
    intake.sink.failure = WalFull("cannot write")
    with pytest.raises(WalFull):
        intake.admission.admit(body(span(1)), "default")
    intake.sink.failure = None
    assert admit(intake, body(span(1))) == Receipt()
    assert intake.counts() == (1, 0, 0, 1)


def test_an_acknowledgement_cannot_be_cancelled():
    intake = Intake()
    intake.sink.hold = True
    receipt = intake.admission.admit(body(span(1)), "default")
    assert not receipt.cancel()
    intake.sink.held[0].set_result(None)
    assert receipt.result(1) == Receipt()


def test_what_an_earlier_process_received_is_a_retransmit_until_its_window_ends():
    data = body(span(1))
    for age_s, stored in ((599, 0), (601, 1), (-1000, 0)):
        intake = Intake(retransmit_window_s=600)
        intake.admission.remember("default", xxh3_128_digest(data), time.time_ns() - age_s * 10**9)
        assert admit(intake, data) == Receipt()
        assert len(intake.sink.frames) == stored


def test_a_retransmit_after_a_restart_is_known_although_a_span_was_rejected():
    data = body(span(1), span(2, trace_id=b""))
    before, after = Intake(), Intake()
    admit(before, data)
    after.admission.remember("default", before.sink.frames[0].digest, time.time_ns())
    assert admit(after, data).rejected == 1
    assert not after.sink.frames
    assert after.counts() == (2, 1, 1, 0)


def test_the_memory_of_retransmits_is_bounded_in_time_and_number():
    intake = Intake(retransmit_entries_max=2)
    for number in (1, 2, 3, 1, 3):
        admit(intake, body(span(number)))
    assert intake.sink.names() == ["span 1", "span 2", "span 3", "span 1"]
    intake = Intake(retransmit_window_s=0.05)
    admit(intake, body(span(1)))
    time.sleep(0.1)
    admit(intake, body(span(1)))
    assert len(intake.sink.frames) == 2


def test_of_many_that_send_the_same_at_once_one_is_stored():
    intake = Intake()
    barrier = threading.Barrier(16)

    def send() -> None:
        barrier.wait()
        admit(intake, body(span(1)))

    threads = [threading.Thread(target=send) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(intake.sink.frames) == 1
    assert intake.counts() == (16, 0, 15, 1)


# --- bytes in flight ----------------------------------------------------------------------------------------------


def test_bytes_in_flight_are_bounded_and_given_back():
    in_flight = Intake(request_bytes_max=50, in_flight_bytes_max=100).admission.in_flight
    with in_flight.hold(60) as hold:
        with pytest.raises(Overloaded) as refused, in_flight.hold(41):
            raise AssertionError("not reached")
        assert isinstance(refused.value, Retryable)
        assert refused.value.retry_after_s == 1
        hold.grow(40)
        with pytest.raises(Overloaded):
            hold.grow(1)
        hold.grow(-70)
        with in_flight.hold(70):
            assert in_flight.held_bytes == 100
    assert in_flight.held_bytes == 0


# --- anything at all ----------------------------------------------------------------------------------------------

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
REAL = body(
    *(
        span(i, events=[{"name": "event", "attributes": [attribute("k", AnyValue(string_value="v"))]}], links=[{}])
        for i in range(1, 6)
    )
)


def admit_or_refuse(data: bytes) -> Intake:
    """Whatever is sent, it is admitted or refused; and what is kept can be decoded again, and is counted."""
    intake = Intake()
    try:
        receipt = admit(intake, data)
    except Refusal:
        assert not intake.sink.frames
        return intake
    kept = len(intake.sink.names())
    assert kept == sum(frame.items for frame in intake.sink.frames)
    if kept or receipt.rejected:
        assert intake.counts() == (kept + receipt.rejected, receipt.rejected, 0, kept)
    return intake


@FUZZ
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_admitted_or_refused(data):
    admit_or_refuse(data)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(REAL) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_real_request_with_bytes_changed_is_admitted_or_refused(changes):
    data = bytearray(REAL)
    for at, value in changes:
        data[at] = value
    admit_or_refuse(bytes(data))


@FUZZ
@given(st.integers(0, len(REAL)), st.integers(0, len(REAL)), st.binary(max_size=20))
def test_a_real_request_with_a_piece_replaced_is_admitted_or_refused(one, other, piece):
    start, end = sorted((one, other))
    admit_or_refuse(REAL[:start] + piece + REAL[end:])


VALID = st.integers(1, 1000).map(span)
SPOILT = st.sampled_from([span(7, **bad) for bad in BAD_IDS.values()]) | st.sampled_from(
    [span(7, name="spoilt"), span(7, trace_state="spoilt"), span(7, events=[{"name": "spoilt"}])]
)


@FUZZ
@given(st.lists(VALID.map(lambda one: (True, one)) | SPOILT.map(lambda one: (False, one)), max_size=12))
def test_every_valid_span_survives_whatever_is_beside_it(spans):
    good = [one for valid, one in spans if valid]
    data = body(*(one for _, one in spans)).replace(b"spoilt", b"spoil\xff")
    sifted = sift(data, 100)
    assert (sifted.items, sifted.rejected) == (len(good), len(spans) - len(good))
    kept = ExportTraceServiceRequest.FromString(sifted.request)
    assert [one for r in kept.resource_spans for s in r.scope_spans for one in s.spans] == good
