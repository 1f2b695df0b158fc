-- What was said of those traces, by name: a number a trace (the mean, if several said one) and a label a trace (the last).
-- Where sampling left traces out: each counts as often as it weighs. Besides, the weights of the numbers, and the sum of
-- the squares of those with a label.
-- true and false are numbers and no labels. Of the labels the most frequent, and how many traces have any.
SELECT
    Name,
    arrayFlatten(groupArray(Numbers)),
    sum(Labelled),
    arraySlice(arraySort(x -> (-x.2, x.1), groupArrayIf((Label, Labelled), Label != '')), 1, {labels:UInt64}),
    arrayFlatten(groupArray(Weights)),
    sum(Squares)
FROM
(
    SELECT
        Name, Label, groupArrayIf(Average, NOT isNaN(Average)) AS Numbers, groupArrayIf(W, NOT isNaN(Average)) AS Weights,
        sumIf(W, Label != '') AS Labelled, sumIf(W * W, Label != '') AS Squares
    FROM
    (
        SELECT
            toString(Name) AS Name,
            avgIf(Number, NOT isNaN(Number)) AS Average,
            argMaxIf(Text, Updated, Text != '' AND (isNaN(Number) OR Text NOT IN ('true', 'false'))) AS Label,
            toFloat64(any(of.Weight)) AS W
        FROM spanhouse.assessments FINAL
        GLOBAL INNER JOIN
        (
            SELECT TraceId, Weight
            FROM spanhouse.links FINAL
            WHERE Entity = {entity:String} AND Id = {id:String} AND Version = {version:String} AND Deleted = 0
                AND Start >= fromUnixTimestamp64Nano({since:Int64}) AND Start < fromUnixTimestamp64Nano({until:Int64})
            ORDER BY Start DESC, TraceId
            LIMIT {limit:UInt64}
        ) AS of USING TraceId
        WHERE Deleted = 0 AND Kind != 'expectation'
        GROUP BY Name, TraceId
    )
    GROUP BY Name, Label
)
GROUP BY Name
ORDER BY Name
LIMIT {names:UInt64}
