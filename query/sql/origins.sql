-- Resources and scopes by their ids.
SELECT
    OriginId, mapKeys(ResourceAttributes), mapValues(ResourceAttributes), ResourceDroppedAttributesCount, ResourceSchemaUrl,
    ScopeName, ScopeVersion, mapKeys(ScopeAttributes), mapValues(ScopeAttributes), ScopeDroppedAttributesCount,
    ScopeSchemaUrl
FROM spanhouse.origins
WHERE OriginId IN {origins:Array(UInt64)}
LIMIT 1 BY OriginId
