INSERT INTO spanhouse.ingest (Tenant, Day, Timestamp, TraceId, SpanId, ParentSpanId, ServiceName, SpanName, Kind, Duration, StatusCode, StatusMessage, TraceState, Flags, StringAttributes, IntAttributes, FloatAttributes, BoolAttributes, OtherAttributes, DroppedAttributesCount, EventTimes, EventNames, EventAttributes, EventDroppedAttributesCounts, DroppedEventsCount, Links, DroppedLinksCount, TimeFlags, StartSent, EndSent, OriginId, Received, Content, OtherContent, OriginFirst, ResourceAttributes, ScopeAttributes, ResourceDroppedAttributesCount, ResourceSchemaUrl, ScopeName, ScopeVersion, ScopeDroppedAttributesCount, ScopeSchemaUrl)
SELECT
    tenant AS Tenant,
    if(abs(toDate(time) - toDate(arrival)) <= 45, toDate(time), toDate(0)) AS Day,
    time AS Timestamp,
    toFixedString(trace_id, 16) AS TraceId,
    toFixedString(span_id, 8) AS SpanId,
    toFixedString(parent_span_id, 8) AS ParentSpanId,
    service AS ServiceName,
    name AS SpanName,
    kind AS Kind,
    finish - begin AS Duration,
    status_code AS StatusCode,
    status_message AS StatusMessage,
    trace_state AS TraceState,
    flags AS Flags,
    mapFromArrays(arrayFilter((k, x, p) -> isNotNull(x) AND NOT p, keys, strings, is_content), arrayMap(x -> assumeNotNull(x), arrayFilter((x, p) -> isNotNull(x) AND NOT p, strings, is_content))) AS StringAttributes,
    mapFromArrays(arrayFilter((k, x) -> isNotNull(x), keys, ints), arrayMap(x -> assumeNotNull(x), arrayFilter((x) -> isNotNull(x), ints))) AS IntAttributes,
    mapFromArrays(arrayFilter((k, x) -> isNotNull(x), keys, doubles), arrayMap(x -> assumeNotNull(x), arrayFilter((x) -> isNotNull(x), doubles))) AS FloatAttributes,
    mapFromArrays(arrayFilter((k, x) -> isNotNull(x), keys, bools), arrayMap(x -> assumeNotNull(x), arrayFilter((x) -> isNotNull(x), bools))) AS BoolAttributes,
    mapFromArrays(arrayFilter((k, x, p, q) -> p AND NOT (q OR length(x) > 1024), keys, others, is_other, is_content), arrayFilter((x, p, q) -> p AND NOT (q OR length(x) > 1024), others, is_other, is_content)) AS OtherAttributes,
    dropped_attributes AS DroppedAttributesCount,
    event_times AS EventTimes,
    event_names AS EventNames,
    arrayMap(x -> mapFromArrays(x.key, arrayMap((s, i, d, b, a, m, y) -> coalesce(concat('s', s), concat('i', i), concat('d', d), concat('b', b), concat('a', a), concat('m', m), concat('y', y), 'e'), x.value.string_value, x.value.int_value, x.value.double_value, x.value.bool_value, x.value.array_value, x.value.kvlist_value, x.value.bytes_value)), event_attributes) AS EventAttributes,
    event_dropped AS EventDroppedAttributesCounts,
    dropped_events AS DroppedEventsCount,
    links AS Links,
    dropped_links AS DroppedLinksCount,
    toUInt8((begin != start) + 2 * (finish != end) + 4 * (end > 0 AND end < start) + 8 * (end = 0)) AS TimeFlags,
    if(begin != start, start, 0) AS StartSent,
    if(finish != end, end, 0) AS EndSent,
    origin_id AS OriginId,
    arrival AS Received,
    mapFromArrays(arrayFilter((k, x, p) -> isNotNull(x) AND p, keys, strings, is_content), arrayMap(x -> assumeNotNull(x), arrayFilter((x, p) -> isNotNull(x) AND p, strings, is_content))) AS Content,
    mapFromArrays(arrayFilter((k, x, p, q) -> p AND (q OR length(x) > 1024), keys, others, is_other, is_content), arrayFilter((x, p, q) -> p AND (q OR length(x) > 1024), others, is_other, is_content)) AS OtherContent,
    first AS OriginFirst,
    resource_map AS ResourceAttributes,
    scope_map AS ScopeAttributes,
    rest.1 AS ResourceDroppedAttributesCount,
    rest.2 AS ResourceSchemaUrl,
    rest.3 AS ScopeName,
    rest.4 AS ScopeVersion,
    rest.5 AS ScopeDroppedAttributesCount,
    rest.6 AS ScopeSchemaUrl
FROM
(
SELECT
    tenant, received, service, origin_id, first, resource_map, scope_map, rest, trace_id, span_id, trace_state, parent_span_id, name, kind, start, end, keys, strings, ints, doubles, bools, arrays, kvlists, bytes, dropped_attributes, event_times, event_names, event_attributes, event_dropped, dropped_events, links, dropped_links, status_message, status_code, flags,
    arrayMap((k, s) -> k IN ('gen_ai.input.messages', 'gen_ai.output.messages', 'gen_ai.system_instructions', 'gen_ai.tool.definitions', 'gen_ai.tool.call.arguments', 'gen_ai.tool.call.result', 'gen_ai.prompt', 'gen_ai.completion', 'gen_ai.task.input', 'gen_ai.task.output', 'gen_ai.retrieval.documents', 'input.value', 'output.value', 'llm.invocation_parameters', 'llm.prompt_template.template', 'llm.prompt_template.variables', 'tool.parameters', 'tool.json_schema', 'embedding.text', 'mlflow.spanInputs', 'mlflow.spanOutputs', 'mlflow.chat.tools', 'mlflow.traceInputs', 'mlflow.traceOutputs', 'langfuse.observation.input', 'langfuse.observation.output', 'langfuse.trace.input', 'langfuse.trace.output', 'traceloop.entity.input', 'traceloop.entity.output', 'braintrust.input', 'braintrust.output', 'braintrust.input_json', 'braintrust.output_json', 'ai.prompt', 'ai.prompt.messages', 'ai.prompt.tools', 'ai.response.text', 'ai.response.object', 'ai.response.toolCalls', 'ai.toolCall.args', 'ai.toolCall.result', 'ai.value', 'ai.values', 'ai.embedding', 'ai.embeddings', 'ai.ranking', 'pydantic_ai.all_messages', 'all_messages_events', 'final_result', 'tool_arguments', 'tool_response', 'model_request_parameters', 'logfire.json_schema', 'request_data', 'response_data', 'events', 'gcp.vertex.agent.llm_request', 'gcp.vertex.agent.llm_response', 'gcp.vertex.agent.tool_call_args', 'gcp.vertex.agent.tool_response', 'weave.input.messages', 'weave.output.messages', 'lmnr.span.input', 'lmnr.span.output', 'langwatch.input', 'langwatch.output', 'langwatch.rag_contexts', 'lk.chat_ctx', 'lk.response.text', 'system_prompt', 'system_prompt_preview', 'user_prompt', 'tool_input', 'new_context', 'response.model_output', 'invocation_params', 'input', 'output', 'tools', 'message_context') OR (substringIndex(k, '.', 2) IN ('llm.input_messages', 'llm.output_messages', 'llm.prompts', 'llm.choices', 'llm.tools', 'gen_ai.prompt', 'gen_ai.completion', 'retrieval.documents', 'embedding.embeddings', 'reranker.input_documents', 'reranker.output_documents') AND k NOT IN ('gen_ai.prompt.name', 'gen_ai.prompt.version', 'gen_ai.prompt.id')) OR length(assumeNotNull(s)) > 1024, keys, strings) AS is_content,
    arrayMap((s, i, d, b) -> isNull(s) AND isNull(i) AND isNull(d) AND isNull(b), strings, ints, doubles, bools) AS is_other,
    arrayMap((a, m, y) -> coalesce(concat('a', a), concat('m', m), concat('y', y), 'e'), arrays, kvlists, bytes) AS others,
    toInt64(least(multiIf(start > 0, start, end > 0, end, received * 1000000000), 4294967295000000000)) AS begin,
    if(end = 0, begin, toInt64(least(end, 9223372036854775807))) AS finish,
    fromUnixTimestamp64Nano(begin, 'UTC') AS time,
    toDateTime(received, 'UTC') AS arrival
FROM
(
SELECT
    tenant AS tenant,
    received AS received,
    substring(resource_map['service.name'], 2) AS service,
    mapFromArrays(scope.key, arrayMap((s, i, d, b, a, m, y) -> coalesce(concat('s', s), concat('i', i), concat('d', d), concat('b', b), concat('a', a), concat('m', m), concat('y', y), 'e'), scope.value.string_value, scope.value.int_value, scope.value.double_value, scope.value.bool_value, scope.value.array_value, scope.value.kvlist_value, scope.value.bytes_value)) AS scope_map,
    (resource_dropped, resource_url, scope_name, scope_version, scope_dropped, scope_url) AS rest,
    sipHash64(resource_map, scope_map, rest) AS origin_id,
    arrayResize([1], length(trace_id1)) AS first1,
    arrayResize([resource_map], length(trace_id1)) AS resource_map1,
    arrayResize([scope_map], length(trace_id1)) AS scope_map1,
    arrayResize([rest], length(trace_id1)) AS rest1,
    trace_id1, span_id1, trace_state1, parent_span_id1, name1, kind1, start1, end1, keys1, strings1, ints1, doubles1, bools1, arrays1, kvlists1, bytes1, dropped_attributes1, event_times1, event_names1, event_attributes1, event_dropped1, dropped_events1, links1, dropped_links1, status_message1, status_code1, flags1
FROM
(
SELECT tenant, received, mapFromArrays(resource.key, arrayMap((s, i, d, b, a, m, y) -> coalesce(concat('s', s), concat('i', i), concat('d', d), concat('b', b), concat('a', a), concat('m', m), concat('y', y), 'e'), resource.value.string_value, resource.value.int_value, resource.value.double_value, resource.value.bool_value, resource.value.array_value, resource.value.kvlist_value, resource.value.bytes_value)) AS resource_map, resource_dropped, resource_url, scope1, scope_name1, scope_version1, scope_dropped1, scope_url1, trace_id2, span_id2, trace_state2, parent_span_id2, name2, kind2, start2, end2, keys2, strings2, ints2, doubles2, bools2, arrays2, kvlists2, bytes2, dropped_attributes2, event_times2, event_names2, event_attributes2, event_dropped2, dropped_events2, links2, dropped_links2, status_message2, status_code2, flags2
FROM
(
SELECT
    tenant AS tenant,
    intDiv(received_unix_nano, 1000000000) AS received,
    request.resource_spans.resource.attributes AS resource1,
    request.resource_spans.resource.dropped_attributes_count AS resource_dropped1,
    request.resource_spans.schema_url AS resource_url1,
    request.resource_spans.scope_spans.scope.attributes AS scope2,
    request.resource_spans.scope_spans.scope.name AS scope_name2,
    request.resource_spans.scope_spans.scope.version AS scope_version2,
    request.resource_spans.scope_spans.scope.dropped_attributes_count AS scope_dropped2,
    request.resource_spans.scope_spans.schema_url AS scope_url2,
    request.resource_spans.scope_spans.spans.trace_id AS trace_id3,
    request.resource_spans.scope_spans.spans.span_id AS span_id3,
    request.resource_spans.scope_spans.spans.trace_state AS trace_state3,
    request.resource_spans.scope_spans.spans.parent_span_id AS parent_span_id3,
    request.resource_spans.scope_spans.spans.name AS name3,
    request.resource_spans.scope_spans.spans.kind AS kind3,
    request.resource_spans.scope_spans.spans.start_time_unix_nano AS start3,
    request.resource_spans.scope_spans.spans.end_time_unix_nano AS end3,
    request.resource_spans.scope_spans.spans.attributes.key AS keys3,
    request.resource_spans.scope_spans.spans.attributes.value.string_value AS strings3,
    request.resource_spans.scope_spans.spans.attributes.value.int_value AS ints3,
    request.resource_spans.scope_spans.spans.attributes.value.double_value AS doubles3,
    request.resource_spans.scope_spans.spans.attributes.value.bool_value AS bools3,
    request.resource_spans.scope_spans.spans.attributes.value.array_value AS arrays3,
    request.resource_spans.scope_spans.spans.attributes.value.kvlist_value AS kvlists3,
    request.resource_spans.scope_spans.spans.attributes.value.bytes_value AS bytes3,
    request.resource_spans.scope_spans.spans.dropped_attributes_count AS dropped_attributes3,
    request.resource_spans.scope_spans.spans.events.time_unix_nano AS event_times3,
    request.resource_spans.scope_spans.spans.events.name AS event_names3,
    request.resource_spans.scope_spans.spans.events.attributes AS event_attributes3,
    request.resource_spans.scope_spans.spans.events.dropped_attributes_count AS event_dropped3,
    request.resource_spans.scope_spans.spans.dropped_events_count AS dropped_events3,
    request.resource_spans.scope_spans.spans.links AS links3,
    request.resource_spans.scope_spans.spans.dropped_links_count AS dropped_links3,
    request.resource_spans.scope_spans.spans.status.message AS status_message3,
    request.resource_spans.scope_spans.spans.status.code AS status_code3,
    request.resource_spans.scope_spans.spans.flags AS flags3
FROM file('/wal/segment.wal', 'Protobuf', 'received_unix_nano UInt64, tenant String, request Tuple(resource_spans Array(Tuple(resource Tuple(attributes Array(Tuple(key LowCardinality(String), value Tuple(string_value Nullable(String), int_value Nullable(Int64), double_value Nullable(Float64), bool_value Nullable(Bool), array_value Nullable(String), kvlist_value Nullable(String), bytes_value Nullable(String)))), dropped_attributes_count UInt32), scope_spans Array(Tuple(scope Tuple(name String, version String, attributes Array(Tuple(key LowCardinality(String), value Tuple(string_value Nullable(String), int_value Nullable(Int64), double_value Nullable(Float64), bool_value Nullable(Bool), array_value Nullable(String), kvlist_value Nullable(String), bytes_value Nullable(String)))), dropped_attributes_count UInt32), spans Array(Tuple(
    trace_id String, span_id String, trace_state String, parent_span_id String, name String, kind Int32,
    start_time_unix_nano UInt64, end_time_unix_nano UInt64,
    attributes Array(Tuple(key LowCardinality(String), value Tuple(string_value Nullable(String), int_value Nullable(Int64), double_value Nullable(Float64), bool_value Nullable(Bool), array_value Nullable(String), kvlist_value Nullable(String), bytes_value Nullable(String)))), dropped_attributes_count UInt32,
    events Array(Tuple(time_unix_nano UInt64, name String, attributes Array(Tuple(key LowCardinality(String), value Tuple(string_value Nullable(String), int_value Nullable(Int64), double_value Nullable(Float64), bool_value Nullable(Bool), array_value Nullable(String), kvlist_value Nullable(String), bytes_value Nullable(String)))), dropped_attributes_count UInt32)), dropped_events_count UInt32,
    links Array(String), dropped_links_count UInt32,
    status Tuple(message String, code Int32), flags UInt32)), schema_url String)), schema_url String)))')
)
ARRAY JOIN resource1 AS resource, resource_dropped1 AS resource_dropped, resource_url1 AS resource_url,
    scope2 AS scope1, scope_name2 AS scope_name1, scope_version2 AS scope_version1, scope_dropped2 AS scope_dropped1, scope_url2 AS scope_url1,
    trace_id3 AS trace_id2, span_id3 AS span_id2, trace_state3 AS trace_state2, parent_span_id3 AS parent_span_id2, name3 AS name2, kind3 AS kind2, start3 AS start2, end3 AS end2, keys3 AS keys2, strings3 AS strings2, ints3 AS ints2, doubles3 AS doubles2, bools3 AS bools2, arrays3 AS arrays2, kvlists3 AS kvlists2, bytes3 AS bytes2, dropped_attributes3 AS dropped_attributes2, event_times3 AS event_times2, event_names3 AS event_names2, event_attributes3 AS event_attributes2, event_dropped3 AS event_dropped2, dropped_events3 AS dropped_events2, links3 AS links2, dropped_links3 AS dropped_links2, status_message3 AS status_message2, status_code3 AS status_code2, flags3 AS flags2
)
ARRAY JOIN scope1 AS scope, scope_name1 AS scope_name, scope_version1 AS scope_version, scope_dropped1 AS scope_dropped, scope_url1 AS scope_url,
    trace_id2 AS trace_id1, span_id2 AS span_id1, trace_state2 AS trace_state1, parent_span_id2 AS parent_span_id1, name2 AS name1, kind2 AS kind1, start2 AS start1, end2 AS end1, keys2 AS keys1, strings2 AS strings1, ints2 AS ints1, doubles2 AS doubles1, bools2 AS bools1, arrays2 AS arrays1, kvlists2 AS kvlists1, bytes2 AS bytes1, dropped_attributes2 AS dropped_attributes1, event_times2 AS event_times1, event_names2 AS event_names1, event_attributes2 AS event_attributes1, event_dropped2 AS event_dropped1, dropped_events2 AS dropped_events1, links2 AS links1, dropped_links2 AS dropped_links1, status_message2 AS status_message1, status_code2 AS status_code1, flags2 AS flags1
)
ARRAY JOIN first1 AS first, resource_map1 AS resource_map, scope_map1 AS scope_map, rest1 AS rest, trace_id1 AS trace_id, span_id1 AS span_id, trace_state1 AS trace_state, parent_span_id1 AS parent_span_id, name1 AS name, kind1 AS kind, start1 AS start, end1 AS end, keys1 AS keys, strings1 AS strings, ints1 AS ints, doubles1 AS doubles, bools1 AS bools, arrays1 AS arrays, kvlists1 AS kvlists, bytes1 AS bytes, dropped_attributes1 AS dropped_attributes, event_times1 AS event_times, event_names1 AS event_names, event_attributes1 AS event_attributes, event_dropped1 AS event_dropped, dropped_events1 AS dropped_events, links1 AS links, dropped_links1 AS dropped_links, status_message1 AS status_message, status_code1 AS status_code, flags1 AS flags
)
SETTINGS format_schema_source = 'string', format_schema_message_name = 'Frame', format_schema = '<proto/wal.proto>', max_threads = 1, max_insert_threads = 1, max_block_size = 1048576, input_format_max_block_size_bytes = 1073741824, min_insert_block_size_rows = 0, min_insert_block_size_bytes = 0, max_insert_block_size = 4294967296, max_partitions_per_insert_block = 0, async_insert = 0, input_format_protobuf_oneof_presence = 0, log_queries = 0, insert_deduplication_token = 'token'
