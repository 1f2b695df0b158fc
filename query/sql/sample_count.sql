-- How many traces one version or run has, those that sampling left out included.
SELECT toUInt64(round(sum(toFloat64(Weight))))
FROM spanhouse.links FINAL
WHERE Entity = {entity:String} AND Id = {id:String} AND Version = {version:String} AND Deleted = 0
    AND Start >= fromUnixTimestamp64Nano({since:Int64}) AND Start < fromUnixTimestamp64Nano({until:Int64})
