-- What a trace that is linked to a run or a logged model belongs to besides, as the registry said at last: its registered
-- model version, its experiment. Written when the registry says something else, read when the program starts, so that a
-- trace that is settled again keeps its links while the registry is away. The registry is one for all tenants; Tenants are
-- those with such traces.
CREATE TABLE IF NOT EXISTS spanhouse.implied
(
    Entity LowCardinality(String),
    Id String,
    Links Array(Tuple(Entity String, Id String, Version String)),
    Tenants Array(String),
    Updated DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(Updated)
ORDER BY (Entity, Id)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;
