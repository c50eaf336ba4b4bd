-- The change feed: one row for each (scope, key) with its latest value, and what each device has seen.

-- RFC 7396 JSON Merge Patch: objects merge, null deletes, everything else replaces. One aggregate for each object, so
-- that a large one costs what it weighs.
CREATE FUNCTION syncbeat_merge_patch(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    -- Concatenating nothing unpacks the value once and for all.
    base CONSTANT jsonb := CASE WHEN jsonb_typeof(target) = 'object' THEN target ELSE '{}' END || '{}'::jsonb;
BEGIN
    IF jsonb_typeof(patch) IS DISTINCT FROM 'object' THEN
        RETURN patch;
    END IF;
    RETURN coalesce((
        SELECT jsonb_object_agg(merged.key, merged.value) FROM (
            SELECT b.key, b.value FROM jsonb_each(base) b WHERE NOT patch ? b.key
            UNION ALL
            SELECT p.key, CASE WHEN jsonb_typeof(p.value) = 'object'
                               THEN syncbeat_merge_patch(base -> p.key, p.value) ELSE p.value END
            FROM jsonb_each(patch) p WHERE jsonb_typeof(p.value) <> 'null') merged), '{}');
END $$;

CREATE TABLE changes (
    app_id     text COLLATE "C" NOT NULL,
    scope      text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    value      jsonb,
    deleted    boolean NOT NULL DEFAULT false,
    sequence   bigint NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (app_id, scope, key),
    FOREIGN KEY (app_id, scope) REFERENCES scopes (app_id, scope),
    CONSTRAINT changes_value_size CHECK (pg_column_size(value) <= 1048576)
);
CREATE UNIQUE INDEX changes_by_sequence ON changes (app_id, scope, sequence);

CREATE TABLE device_cursors (
    app_id    text COLLATE "C" NOT NULL,
    user_id   text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    scope     text COLLATE "C" NOT NULL,
    epoch     text COLLATE "C" NOT NULL,
    sequence  bigint NOT NULL,
    seen_at   timestamptz NOT NULL,
    PRIMARY KEY (app_id, user_id, device_id, scope),
    FOREIGN KEY (app_id, user_id, device_id) REFERENCES devices (app_id, user_id, device_id) ON DELETE CASCADE
);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['changes', 'device_cursors'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;

GRANT SELECT, INSERT, UPDATE ON changes TO syncbeat_user;
CREATE POLICY member ON changes FOR SELECT TO syncbeat_user
    USING (app_id = syncbeat_app() AND EXISTS (
        SELECT 1 FROM scope_members m
        WHERE m.app_id = changes.app_id AND m.user_id = syncbeat_caller() AND m.scope = changes.scope));
CREATE POLICY writer_inserts ON changes FOR INSERT TO syncbeat_user
    WITH CHECK (app_id = syncbeat_app() AND EXISTS (
        SELECT 1 FROM scope_members m
        WHERE m.app_id = changes.app_id AND m.user_id = syncbeat_caller() AND m.scope = changes.scope
          AND m.role = 'WRITER'));
CREATE POLICY writer_updates ON changes FOR UPDATE TO syncbeat_user
    USING (app_id = syncbeat_app() AND EXISTS (
        SELECT 1 FROM scope_members m
        WHERE m.app_id = changes.app_id AND m.user_id = syncbeat_caller() AND m.scope = changes.scope
          AND m.role = 'WRITER'));

GRANT SELECT, INSERT, UPDATE ON device_cursors TO syncbeat_user;
CREATE POLICY own ON device_cursors TO syncbeat_user
    USING (app_id = syncbeat_app() AND user_id = syncbeat_caller())
    WITH CHECK (app_id = syncbeat_app() AND user_id = syncbeat_caller());
