-- The spans of a batch of traces for the settling, a row a trace, as little of each span as it takes. `traces` are ids in
-- hex, one after the other.
--
-- Said       the distinct maps of what its spans say of links: keys with commas, then values.
-- Records    41 bytes a span: id, parent's id, start and duration in nanoseconds, origin, whether it failed.
-- Keys       for each span what it says of its usage, agent and tool: the keys, with commas. Vals: all their values.
SELECT
    TraceId,
    count() AS Rows,
    toUnixTimestamp(min(Received)) AS FirstReceived,
    groupUniqArray(OriginId) AS Origins,
    argMinIf(toString(SpanName), Timestamp, ParentSpanId = unhex('0000000000000000')) AS RootName,
    argMinIf(toString(ServiceName), Timestamp, ParentSpanId = unhex('0000000000000000')) AS RootService,
    groupUniqArrayIf(1000)(SaidText, length(SaidText) > 1) AS Said,
    arrayStringConcat(groupArray(Record)) AS Records,
    groupArray(UsedKeys) AS Keys,
    groupArrayArray(UsedValues) AS Vals,
    max(SpanWeight) AS Weight
FROM
(
    SELECT
        TraceId, SpanName, ServiceName, Timestamp, ParentSpanId, Received, OriginId, Weight AS SpanWeight,
        concat(
            SpanId, ParentSpanId,
            reinterpretAsFixedString(toUnixTimestamp64Nano(Timestamp)), reinterpretAsFixedString(Duration),
            reinterpretAsFixedString(OriginId), reinterpretAsFixedString(toUInt8(StatusCode = 2))
        ) AS Record,
        mapFilter((k, v) -> k IN {said:Array(String)}, Canonical) AS SaidMap,
        concat(arrayStringConcat(mapKeys(SaidMap), ','), '\x1e', arrayStringConcat(mapValues(SaidMap), '\x1f')) AS SaidText,
        mapFilter((k, v) -> k IN {used:Array(String)}, Canonical) AS Used,
        arrayStringConcat(mapKeys(Used), ',') AS UsedKeys,
        mapValues(Used) AS UsedValues
    FROM spanhouse.spans
    WHERE TraceId IN
        (
            SELECT toFixedString(unhex(substring({traces:String}, number * 32 + 1, 32)), 16)
            FROM numbers(intDiv(length({traces:String}), 32))
        )
        AND Timestamp >= fromUnixTimestamp64Nano({start:Int64}, 'UTC')
        AND Timestamp <= fromUnixTimestamp64Nano(least({end:Int64}, 4294967295000000000), 'UTC')
)
GROUP BY TraceId
