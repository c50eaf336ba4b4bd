-- Which transaction wrote each row of the feeds, so that a stream of a whole app finds what came after a snapshot
-- (sync/rounds.py), however many scopes there are and in whichever order transactions end.

-- Rows of before were written by nobody that a stream may still wait for. A constant default rewrites no row.
ALTER TABLE changes ADD COLUMN xid xid8 NOT NULL DEFAULT '0';
ALTER TABLE changes ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
CREATE INDEX changes_by_xid ON changes (app_id, xid) WHERE xid > '0';

-- Servers of earlier versions do not name the column when they change a row; for those that do this is called only where
-- a transaction changes a row twice.
CREATE FUNCTION syncbeat_stamp_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.xid := pg_current_xact_id();
    RETURN NEW;
END $$;
CREATE TRIGGER stamp_change BEFORE UPDATE ON changes FOR EACH ROW
    WHEN (NEW.xid = OLD.xid AND NEW.sequence <> OLD.sequence)
    EXECUTE FUNCTION syncbeat_stamp_change();

-- The last transaction of each app of which a tombstone was removed: who has not seen what that wrote may have missed a
-- deletion.
CREATE TABLE pruned_feeds (
    app_id text COLLATE "C" PRIMARY KEY,
    xid    xid8 NOT NULL
);
ALTER TABLE pruned_feeds ENABLE ROW LEVEL SECURITY;
ALTER TABLE pruned_feeds FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON pruned_feeds TO syncbeat_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON pruned_feeds TO syncbeat_service;

-- Which table the transactions of the feeds are of: a dump that is restored, here or elsewhere, makes another one. Some
-- providers may keep the cluster's identifier to themselves; the two oids are told to everybody.
CREATE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE cluster bigint := 0;
BEGIN
    BEGIN
        cluster := (SELECT system_identifier FROM pg_control_system());
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported THEN
        NULL;
    END;
    RETURN concat_ws('.', cluster, (SELECT oid FROM pg_database WHERE datname = current_database()),
                     'changes'::regclass::oid);
END $$;
