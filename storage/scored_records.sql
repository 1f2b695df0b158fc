-- Log records of some traces that are scores, each once. `traces` are ids in hex, one after the other.
SELECT
    TraceId, SpanId, Time, toString(EventName), mapKeys(Attributes), mapValues(Attributes), mapKeys(Content),
    mapValues(Content)
FROM spanhouse.records
WHERE TraceId IN
    (
        SELECT toFixedString(unhex(substring({traces:String}, number * 32 + 1, 32)), 16)
        FROM numbers(intDiv(length({traces:String}), 32))
    )
    AND EventName IN {events:Array(String)}
LIMIT 1 BY TraceId, RecordKey
LIMIT {limit:UInt64}
