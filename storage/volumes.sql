-- What is stored by day and NAME, an expression: the names with most bytes, and the others together as `…`.
SELECT
    toString(Day), if(NAME GLOBAL IN (
        SELECT NAME
        FROM spanhouse.volumes
        GROUP BY NAME
        ORDER BY sum(SkeletonBytes + ContentBytes + RecordSkeletonBytes + RecordContentBytes) DESC, NAME
        LIMIT {limit:UInt32}
    ), NAME, '…') AS Name,
    sum(Spans), sum(SkeletonBytes), sum(Contents), sum(ContentBytes), sum(Records), sum(RecordSkeletonBytes),
    sum(RecordContentBytes)
FROM spanhouse.volumes
GROUP BY Day, Name
