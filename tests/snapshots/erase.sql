-- spans
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.spans
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> k IN ('user_id', 'trace.user_id', 'header.user_id', 'baggage.user_id') AND v = {value:String}, mapKeys(Canonical), mapValues(Canonical)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(StringAttributes), mapValues(StringAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND toString(v) = {value:String}, mapKeys(IntAttributes), mapValues(IntAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND ifNull(v = toFloat64OrNull({value:String}), 0), mapKeys(FloatAttributes), mapValues(FloatAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND toString(v) = {value:String}, mapKeys(BoolAttributes), mapValues(BoolAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 3), {value:String})) > 0), mapKeys(OtherAttributes), mapValues(OtherAttributes)) OR arrayExists(m -> arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 3), {value:String})) > 0), mapKeys(m), mapValues(m)), EventAttributes) OR arrayExists(l -> position(l, concat(char(10, 28), {keys:Array(String)}[1], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 10), {keys:Array(String)}[2], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 19), {keys:Array(String)}[3], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 11), {keys:Array(String)}[4], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 14), {keys:Array(String)}[5], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 40), {keys:Array(String)}[6], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 16), {keys:Array(String)}[7], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 26), {keys:Array(String)}[8], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 21), {keys:Array(String)}[9], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 19), {keys:Array(String)}[10], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 8), {keys:Array(String)}[11], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 35), {keys:Array(String)}[12], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 17), {keys:Array(String)}[13], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 40), {keys:Array(String)}[14], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 4), {keys:Array(String)}[15], char(18, 5), concat(char(10, 3), {value:String}))) > 0 OR position(l, concat(char(10, 7), {keys:Array(String)}[16], char(18, 5), concat(char(10, 3), {value:String}))) > 0, Links) OR OriginId IN (SELECT OriginId FROM spanhouse.origins WHERE Tenant = {tenant:String} AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 3), {value:String})) > 0), mapKeys(ResourceAttributes), mapValues(ResourceAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 3), {value:String})) > 0), mapKeys(ScopeAttributes), mapValues(ScopeAttributes)))))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- content
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.content
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(WholeContent), mapValues(WholeContent)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND arrayStringConcat(v) = {value:String}, mapKeys(ContentPieces), mapValues(ContentPieces)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 3), {value:String})) > 0), mapKeys(OtherContent), mapValues(OtherContent)))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 128, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- records
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.records
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 3), {value:String})) > 0), mapKeys(Attributes), mapValues(Attributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 3), {value:String})) > 0), mapKeys(Content), mapValues(Content)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(Content), mapValues(Content)))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- links
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.links FINAL
WHERE Tenant = {tenant:String} AND (Entity = {entity:String} AND Id = {value:String} AND Deleted = 0)
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- explicit_links
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.explicit_links FINAL
WHERE Tenant = {tenant:String} AND (Entity = {entity:String} AND Id = {value:String} AND Deleted = 0)
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- mlflow_traces
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.mlflow_traces FINAL
WHERE Tenant = {tenant:String} AND (Metadata[{name:String}] = {value:String})
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- spans
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.spans
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> k IN ('session_id', 'trace.session_id', 'header.session_id', 'baggage.session_id') AND v = {value:String}, mapKeys(Canonical), mapValues(Canonical)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(StringAttributes), mapValues(StringAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND toString(v) = {value:String}, mapKeys(IntAttributes), mapValues(IntAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND ifNull(v = toFloat64OrNull({value:String}), 0), mapKeys(FloatAttributes), mapValues(FloatAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND toString(v) = {value:String}, mapKeys(BoolAttributes), mapValues(BoolAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(OtherAttributes), mapValues(OtherAttributes)) OR arrayExists(m -> arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(m), mapValues(m)), EventAttributes) OR arrayExists(l -> position(l, concat(char(10, 31), {keys:Array(String)}[1], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 27), {keys:Array(String)}[2], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 23), {keys:Array(String)}[3], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 22), {keys:Array(String)}[4], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 17), {keys:Array(String)}[5], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 49), {keys:Array(String)}[6], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 19), {keys:Array(String)}[7], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 43), {keys:Array(String)}[8], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 34), {keys:Array(String)}[9], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 29), {keys:Array(String)}[10], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 28), {keys:Array(String)}[11], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 20), {keys:Array(String)}[12], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 19), {keys:Array(String)}[13], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 38), {keys:Array(String)}[14], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 20), {keys:Array(String)}[15], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 10), {keys:Array(String)}[16], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 9), {keys:Array(String)}[17], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 40), {keys:Array(String)}[18], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 48), {keys:Array(String)}[19], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 43), {keys:Array(String)}[20], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 42), {keys:Array(String)}[21], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 15), {keys:Array(String)}[22], char(18, 3), concat(char(10, 1), {value:String}))) > 0 OR position(l, concat(char(10, 21), {keys:Array(String)}[23], char(18, 3), concat(char(10, 1), {value:String}))) > 0, Links) OR OriginId IN (SELECT OriginId FROM spanhouse.origins WHERE Tenant = {tenant:String} AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(ResourceAttributes), mapValues(ResourceAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(ScopeAttributes), mapValues(ScopeAttributes)))))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- content
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.content
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(WholeContent), mapValues(WholeContent)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND arrayStringConcat(v) = {value:String}, mapKeys(ContentPieces), mapValues(ContentPieces)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(OtherContent), mapValues(OtherContent)))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 128, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- records
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.records
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(Attributes), mapValues(Attributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(Content), mapValues(Content)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(Content), mapValues(Content)))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- links
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.links FINAL
WHERE Tenant = {tenant:String} AND (Entity = {entity:String} AND Id = {value:String} AND Deleted = 0)
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- explicit_links
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.explicit_links FINAL
WHERE Tenant = {tenant:String} AND (Entity = {entity:String} AND Id = {value:String} AND Deleted = 0)
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- mlflow_traces
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.mlflow_traces FINAL
WHERE Tenant = {tenant:String} AND (Metadata[{name:String}] = {value:String})
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- spans
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.spans
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(StringAttributes), mapValues(StringAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND toString(v) = {value:String}, mapKeys(IntAttributes), mapValues(IntAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND ifNull(v = toFloat64OrNull({value:String}), 0), mapKeys(FloatAttributes), mapValues(FloatAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND toString(v) = {value:String}, mapKeys(BoolAttributes), mapValues(BoolAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(OtherAttributes), mapValues(OtherAttributes)) OR arrayExists(m -> arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(m), mapValues(m)), EventAttributes) OR arrayExists(l -> position(l, concat(char(10, 1), {keys:Array(String)}[1], char(18, 3), concat(char(10, 1), {value:String}))) > 0, Links) OR OriginId IN (SELECT OriginId FROM spanhouse.origins WHERE Tenant = {tenant:String} AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(ResourceAttributes), mapValues(ResourceAttributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(ScopeAttributes), mapValues(ScopeAttributes)))))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- content
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.content
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(WholeContent), mapValues(WholeContent)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND arrayStringConcat(v) = {value:String}, mapKeys(ContentPieces), mapValues(ContentPieces)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(OtherContent), mapValues(OtherContent)))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 128, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;

-- records
INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)
SELECT DISTINCT {erasure:String}, 'trace', {round:UInt16}, TraceId
FROM spanhouse.records
WHERE Tenant = {tenant:String} AND Day = toDate({day:UInt16}) AND (arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(Attributes), mapValues(Attributes)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND (substring(v, 2) = {value:String} OR startsWith(v, 'd') AND ifNull(toFloat64OrNull(substring(v, 2)) = toFloat64OrNull({value:String}), 0) OR substring(v, 1, 1) IN ('a', 'm') AND position(v, concat(char(10, 1), {value:String})) > 0), mapKeys(Content), mapValues(Content)) OR arrayExists((k, v) -> has({keys:Array(String)}, k) AND v = {value:String}, mapKeys(Content), mapValues(Content)))
LIMIT 500000
SETTINGS max_memory_usage = 536870912, max_threads = 2, max_block_size = 8192, max_execution_time = 0, log_queries = 0, max_insert_threads = 1, async_insert = 0;
