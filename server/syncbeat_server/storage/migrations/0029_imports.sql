-- How far each import of a Realtime Database's export has come (transfer/importing). A row moves on in the transaction of
-- each batch that is written, so that an import that was killed goes on exactly where it was.

CREATE TABLE imports (
    app_id      text COLLATE "C" NOT NULL,
    -- The digest of all that decides what an import writes: its export, its map, its source time.
    import_id   text COLLATE "C" NOT NULL CHECK (octet_length(import_id) = 64),
    export_name text NOT NULL,
    -- Places of the export, in the order of the file, that are done.
    places      bigint NOT NULL DEFAULT 0,
    -- What became of them: counts, and what did not fit by pattern and reason. Bounded where it is made.
    report      jsonb NOT NULL,
    started_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (app_id, import_id)
);

ALTER TABLE imports ENABLE ROW LEVEL SECURITY;
ALTER TABLE imports FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON imports TO syncbeat_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON imports TO syncbeat_service;
