-- What each process wrote of itself in the last half minute, while it did not reach Redis, where that has its place.
--
-- Unlogged: it is of no use after a crash, and costs no log and no replication. A record is JSON as `status/records.py`
-- spells it, which has its bound; no secret and no user is in it.
CREATE UNLOGGED TABLE process_status (
    process    text COLLATE "C" PRIMARY KEY CHECK (octet_length(process) BETWEEN 1 AND 512),
    record     text NOT NULL CHECK (octet_length(record) <= 16384),
    written_at timestamptz NOT NULL
);
CREATE INDEX process_status_by_age ON process_status (written_at);

ALTER TABLE process_status ENABLE ROW LEVEL SECURITY;
ALTER TABLE process_status FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON process_status TO syncbeat_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON process_status TO syncbeat_service;
