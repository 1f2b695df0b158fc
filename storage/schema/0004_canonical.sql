-- What a span itself says in canonical words (storage/conventions.toml): field → text; numbers as text, finish reasons with
-- commas. `trace.<field>`, `baggage.<field>` and `header.<field>` are what was said in those places. What its resource
-- says is not repeated here: it is read from `origins`.
--
-- One map, not forty columns: a load's fixed price is the analysis of its statement, which grows with its columns, and a
-- service's spans, which say nothing of this, store nothing (docs/decisions/0007-vocabulary.md).
ALTER TABLE spanhouse.ingest ADD COLUMN IF NOT EXISTS Canonical Map(LowCardinality(String), String) AFTER Received;
ALTER TABLE spanhouse.spans ADD COLUMN IF NOT EXISTS Canonical Map(LowCardinality(String), String) CODEC(ZSTD(3));
ALTER TABLE spanhouse.to_spans MODIFY QUERY
SELECT
    Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage,
    TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes,
    DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount,
    Links, DroppedLinksCount,
    TimeFlags, StartSent, EndSent, OriginId, Received, Canonical
FROM spanhouse.ingest;
