-- The log records of a trace as they happened, each once. The payload is read only if it is asked for.
SELECT
    SpanId, Time, toString(EventName), SeverityNumber, toString(SeverityText), mapKeys(Attributes), mapValues(Attributes),
    if({content:UInt8} = 1, mapKeys(Content), []), if({content:UInt8} = 1, mapValues(Content), []),
    if({content:UInt8} = 1, Body, ''), DroppedAttributesCount
FROM spanhouse.records
WHERE TraceId = toFixedString(unhex({trace_id:String}), 16)
ORDER BY Time, SpanId, RecordKey
LIMIT 1 BY SpanId, RecordKey
LIMIT {limit:UInt64}
