-- Spans of some traces that carry scores of a vendor's, with all that is needed to read them (scores.py). `traces` are ids
-- in hex, one after the other. First are read the ids, then the names of attributes, and the rest where those are found:
-- nearly nowhere.
SELECT
    TraceId, SpanId, toUnixTimestamp64Nano(Timestamp), Duration,
    mapKeys(StringAttributes), mapValues(StringAttributes), mapKeys(IntAttributes), mapValues(IntAttributes),
    mapKeys(FloatAttributes), mapValues(FloatAttributes), mapKeys(BoolAttributes), mapValues(BoolAttributes),
    EventTimes, EventNames, arrayMap(m -> mapKeys(m), EventAttributes), arrayMap(m -> mapValues(m), EventAttributes),
    Links, cityHash64(SpanId, Timestamp, Duration, SpanName)
FROM spanhouse.spans
PREWHERE TraceId IN
    (
        SELECT toFixedString(unhex(substring({traces:String}, number * 32 + 1, 32)), 16)
        FROM numbers(intDiv(length({traces:String}), 32))
    )
    AND Timestamp >= fromUnixTimestamp64Nano({start:Int64}, 'UTC')
    AND Timestamp <= fromUnixTimestamp64Nano(least({end:Int64}, 4294967295000000000), 'UTC')
    AND
    (
        arrayExists(k -> k IN {keys:Array(String)} OR k = 'braintrust.span_attributes', mapKeys(StringAttributes))
        OR mapContains(BoolAttributes, {triggered:String})
        OR hasAny(EventNames, {events:Array(String)})
    )
-- Braintrust's scores are payload where there are dozens of them: the kind of their span says that there are.
WHERE arrayExists(k -> k IN {keys:Array(String)}, mapKeys(StringAttributes))
    OR mapContains(BoolAttributes, {triggered:String})
    OR hasAny(EventNames, {events:Array(String)})
    OR position(StringAttributes['braintrust.span_attributes'], '"score"') > 0
LIMIT {of_trace:UInt64} BY TraceId
LIMIT {limit:UInt64}
