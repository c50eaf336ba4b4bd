-- What a restore of the database has to tell those who knew it before: each scope's epoch, and the deployment's generation.

-- One row. Tokens that resume the feeds of a whole app carry the generation, and one of another generation is no good. It
-- is made of the time (`syncbeat-server new-epoch`), so that none that was given out and lost with a restore comes again.
CREATE TABLE deployment (
    is_only_row     boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    feed_generation bigint NOT NULL DEFAULT 0
);
INSERT INTO deployment DEFAULT VALUES;

ALTER TABLE deployment ENABLE ROW LEVEL SECURITY;
ALTER TABLE deployment FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON deployment TO syncbeat_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON deployment TO syncbeat_service;

-- An epoch is part of what hints are made of, and does not move changed_at.
DROP TRIGGER touch_scope ON scopes;
CREATE TRIGGER touch_scope AFTER UPDATE ON scopes FOR EACH ROW
    WHEN ((NEW.boosted, NEW.boosted_until, NEW.present, NEW.presence_at, NEW.epoch)
          IS DISTINCT FROM (OLD.boosted, OLD.boosted_until, OLD.present, OLD.presence_at, OLD.epoch))
    EXECUTE FUNCTION syncbeat_touch_scope();
