-- What of the scores of some spans is payload: long explanations, metadata and objects. `traces` are ids in hex, one
-- after the other.
SELECT SpanKey, mapKeys(Wanted), mapValues(Wanted)
FROM
(
    SELECT
        SpanKey,
        mapConcat(
            mapFilter((k, v) -> k = 'braintrust.scores' OR match(k, {pattern:String}), WholeContent),
            mapApply(
                (k, ps) -> (k, arrayStringConcat(ps)),
                mapFilter((k, ps) -> k = 'braintrust.scores' OR match(k, {pattern:String}), ContentPieces)
            )
        ) AS Wanted
    FROM spanhouse.content
    WHERE TraceId IN
        (
            SELECT toFixedString(unhex(substring({traces:String}, number * 32 + 1, 32)), 16)
            FROM numbers(intDiv(length({traces:String}), 32))
        )
        AND Hour >= toStartOfHour(fromUnixTimestamp64Nano({start:Int64}, 'UTC'))
        AND Hour <= toStartOfHour(fromUnixTimestamp64Nano({end:Int64}, 'UTC'))
        AND SpanKey IN {spans:Array(UInt64)}
)
WHERE notEmpty(Wanted)
