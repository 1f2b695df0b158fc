-- As schema 0014 cuts what is loaded.
if(arraySum(v -> length(v), mapValues(Content)) <= 8192, Content, CAST(map(), 'Map(LowCardinality(String), String)')) AS WholeContent,
mapApply(
    (k, v) -> (k, if(length(v) <= 4000, [v], arrayFlatten(arrayMap(
        p -> if(length(p) <= 4000, [p], extractAll(p, '\\C{1,1000}')),
        arrayMap(
            ps -> if(position(v, '\0') = 0 AND 128 * length(ps) <= length(v), ps, [v]),
            [splitByChar('\0', replaceAll(replaceAll(replaceAll(v, '}, {', '},\0 {'), '},{', '},\0{'), '},\n', '},\0\n'))]
        )[1]
    )))),
    if(arraySum(v -> length(v), mapValues(Content)) > 8192, Content, CAST(map(), 'Map(LowCardinality(String), String)'))
) AS ContentPieces
