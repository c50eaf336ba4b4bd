-- What delivering needs beside the queue: receipts, holds, budgets, jobs that expand large targets, token hygiene.

ALTER TABLE notifications
    -- Without a time to live of its own, one that is held lives on for as long as it was held.
    ADD COLUMN patient boolean NOT NULL DEFAULT false,
    -- How many deliveries were accepted; NULL while an expansion still writes them.
    ADD COLUMN accepted integer;

ALTER TABLE deliveries
    -- How often it was sent on to a newer registration token of its device.
    ADD COLUMN moves smallint NOT NULL DEFAULT 0,
    -- An attempt may have reached the device without our knowing, so that it may have come twice.
    ADD COLUMN ambiguous boolean NOT NULL DEFAULT false,
    -- When it was counted into the day's maximum of its device.
    ADD COLUMN counted_at timestamptz,
    ADD COLUMN received_at timestamptz,
    ADD COLUMN opened_at timestamptz;
-- The deliveries are written first, so that their notification knows how many they are.
ALTER TABLE deliveries ALTER CONSTRAINT deliveries_app_id_notification_id_fkey DEFERRABLE INITIALLY DEFERRED;
DROP INDEX deliveries_due;
CREATE INDEX deliveries_due ON deliveries (app_id, priority, due_at)
    WHERE state IN ('PENDING', 'HELD', 'SCHEDULED');

-- STALE tokens are still pushed to. QUARANTINED and PRUNED ones are kept, and come back with the next registration or,
-- a PRUNED one, with the next call of its device.
ALTER TABLE devices DROP CONSTRAINT devices_token_state_check, DROP CONSTRAINT devices_check,
    ADD COLUMN token_state_at timestamptz,
    ADD CONSTRAINT devices_token_state_check
        CHECK (token_state IN ('NONE', 'ACTIVE', 'STALE', 'PRUNED', 'QUARANTINED', 'DEAD', 'MOVED')),
    ADD CONSTRAINT devices_token_kept
        CHECK ((token_state IN ('ACTIVE', 'STALE', 'PRUNED', 'QUARANTINED')) = (registration_token IS NOT NULL));
CREATE INDEX devices_by_token_age ON devices (token_registered_at) WHERE registration_token IS NOT NULL;

-- Tokens that the provider called dead: how many of late decides whether we still believe it.
CREATE TABLE token_removals (
    app_id       text COLLATE "C" NOT NULL,
    removal_id   uuid NOT NULL DEFAULT syncbeat_uuid7(),
    token_digest bytea NOT NULL,
    user_id      text COLLATE "C" NOT NULL,
    device_id    text COLLATE "C" NOT NULL,
    removed_at   timestamptz NOT NULL,
    PRIMARY KEY (app_id, removal_id)
);
CREATE INDEX token_moves_by_age ON token_moves (moved_at);
CREATE INDEX token_removals_by_age ON token_removals (app_id, removed_at);

-- A notification whose deliveries are still to be written, from the target after (after_user, after_device) on.
CREATE TABLE expansions (
    app_id          text COLLATE "C" NOT NULL,
    notification_id uuid NOT NULL,
    targets         jsonb NOT NULL,
    expected        integer NOT NULL,
    after_user      text COLLATE "C" NOT NULL DEFAULT '',
    after_device    text COLLATE "C" NOT NULL DEFAULT '',
    window_s        double precision NOT NULL,
    written         integer NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (app_id, notification_id),
    FOREIGN KEY (app_id, notification_id) REFERENCES notifications (app_id, notification_id) ON DELETE CASCADE
);
CREATE INDEX expansions_by_age ON expansions (created_at);

-- How many more wake-ups the device's system lets through: tokens as of filled_at, growing from there (push/holds.py).
CREATE TABLE wake_budgets (
    app_id    text COLLATE "C" NOT NULL,
    user_id   text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    tokens    double precision NOT NULL,
    filled_at timestamptz NOT NULL,
    PRIMARY KEY (app_id, user_id, device_id),
    FOREIGN KEY (app_id, user_id, device_id) REFERENCES devices (app_id, user_id, device_id) ON DELETE CASCADE
) WITH (fillfactor = 80);

-- What signs the tokens by which devices acknowledge pushes, and tells this database from another one in Redis.
CREATE TABLE app_secrets (
    app_id text COLLATE "C" PRIMARY KEY,
    secret bytea NOT NULL DEFAULT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
);

-- What a user wants to be spared. Minutes of the day; a zone of '' is that of each device.
CREATE TABLE preferences (
    app_id        text COLLATE "C" NOT NULL,
    user_id       text COLLATE "C" NOT NULL,
    quiet_start   smallint CHECK (quiet_start BETWEEN 0 AND 1439),
    quiet_end     smallint CHECK (quiet_end BETWEEN 0 AND 1439),
    quiet_zone    text NOT NULL DEFAULT '',
    max_per_day   integer CHECK (max_per_day >= 0),
    muted_types   text[] NOT NULL DEFAULT '{}',
    updated_at    timestamptz NOT NULL,
    PRIMARY KEY (app_id, user_id),
    CHECK ((quiet_start IS NULL) = (quiet_end IS NULL))
);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['token_removals', 'expansions', 'wake_budgets', 'app_secrets', 'preferences'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;

GRANT SELECT, INSERT, UPDATE ON preferences TO syncbeat_user;
CREATE POLICY own ON preferences TO syncbeat_user
    USING (app_id = syncbeat_app() AND user_id = syncbeat_caller())
    WITH CHECK (app_id = syncbeat_app() AND user_id = syncbeat_caller());
