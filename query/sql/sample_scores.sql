-- What was said of those traces, by name: a number a trace (the mean, if several said one) and a label a trace (the last).
-- true and false are numbers and no labels. Of the labels the most frequent, and how many traces have any.
SELECT
    Name,
    arrayFlatten(groupArray(Numbers)),
    sum(Labelled),
    arraySlice(arraySort(x -> (-x.2, x.1), groupArrayIf((Label, Labelled), Label != '')), 1, {labels:UInt64})
FROM
(
    SELECT Name, Label, groupArrayIf(Average, NOT isNaN(Average)) AS Numbers, countIf(Label != '') AS Labelled
    FROM
    (
        SELECT
            toString(Name) AS Name,
            avgIf(Number, NOT isNaN(Number)) AS Average,
            argMaxIf(Text, Updated, Text != '' AND (isNaN(Number) OR Text NOT IN ('true', 'false'))) AS Label
        FROM spanhouse.assessments FINAL
        WHERE Deleted = 0 AND Kind != 'expectation' AND TraceId GLOBAL IN
        (
            SELECT TraceId
            FROM spanhouse.links FINAL
            WHERE Entity = {entity:String} AND Id = {id:String} AND Version = {version:String} AND Deleted = 0
                AND Start >= fromUnixTimestamp64Nano({since:Int64}) AND Start < fromUnixTimestamp64Nano({until:Int64})
            ORDER BY Start DESC, TraceId
            LIMIT {limit:UInt64}
        )
        GROUP BY Name, TraceId
    )
    GROUP BY Name, Label
)
GROUP BY Name
ORDER BY Name
LIMIT {names:UInt64}
