-- The payload of a trace, once a span.
SELECT
    SpanKey,
    arrayConcat(mapKeys(WholeContent), mapKeys(ContentPieces)),
    arrayConcat(mapValues(WholeContent), arrayMap(ps -> arrayStringConcat(ps), mapValues(ContentPieces))),
    mapKeys(OtherContent), mapValues(OtherContent)
FROM spanhouse.content
WHERE TraceId = toFixedString(unhex({trace_id:String}), 16)
    AND Hour >= toStartOfHour(fromUnixTimestamp64Nano({start:Int64}, 'UTC'))
    AND Hour <= toStartOfHour(fromUnixTimestamp64Nano({end:Int64}, 'UTC'))
LIMIT 1 BY SpanKey
LIMIT {limit:UInt64}
SETTINGS max_block_size = 128
