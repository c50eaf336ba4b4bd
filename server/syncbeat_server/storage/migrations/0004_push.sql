-- What was accepted to be pushed, and the delivery of it to each device.

CREATE TABLE notifications (
    app_id          text COLLATE "C" NOT NULL,
    notification_id uuid NOT NULL,
    kind            text NOT NULL CHECK (kind IN ('MESSAGE', 'SYNC')),
    caller          text NOT NULL,
    content         jsonb NOT NULL,
    type            text NOT NULL DEFAULT '',
    dedupe_key      text NOT NULL DEFAULT '',
    collapse_key    text NOT NULL DEFAULT '',
    priority        text NOT NULL CHECK (priority IN ('HIGH', 'NORMAL')),
    critical        boolean NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL,
    due_at          timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    PRIMARY KEY (app_id, notification_id)
);
CREATE INDEX notifications_by_age ON notifications (created_at);

CREATE TABLE deliveries (
    app_id              text COLLATE "C" NOT NULL,
    delivery_id         uuid NOT NULL DEFAULT syncbeat_uuid7(),
    notification_id     uuid NOT NULL,
    user_id             text COLLATE "C" NOT NULL,
    device_id           text COLLATE "C" NOT NULL,
    -- The cursor that a sync trigger carries; scope is '' for a message.
    scope               text COLLATE "C" NOT NULL DEFAULT '',
    epoch               text COLLATE "C",
    sequence            bigint,
    state               text NOT NULL CHECK (state IN (
        'SCHEDULED', 'HELD', 'PENDING', 'IN_FLIGHT', 'SENT', 'RECEIVED', 'OPENED',
        'SUPPRESSED', 'EXPIRED', 'DEAD', 'CANCELLED')),
    reason              text NOT NULL DEFAULT '',
    attempts            integer NOT NULL DEFAULT 0,
    priority            smallint NOT NULL,
    due_at              timestamptz NOT NULL,
    expires_at          timestamptz NOT NULL,
    first_claimed_at    timestamptz,
    lease_token         uuid,
    lease_until         timestamptz,
    provider_message_id text NOT NULL DEFAULT '',
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    sent_at             timestamptz,
    PRIMARY KEY (app_id, delivery_id),
    FOREIGN KEY (app_id, notification_id) REFERENCES notifications (app_id, notification_id) ON DELETE CASCADE,
    CHECK ((state = 'IN_FLIGHT') = (lease_token IS NOT NULL)),
    CHECK ((lease_token IS NULL) = (lease_until IS NULL))
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX deliveries_once ON deliveries (app_id, notification_id, user_id, device_id, scope);
CREATE INDEX deliveries_due ON deliveries (priority, due_at)
    WHERE state IN ('PENDING', 'HELD', 'SCHEDULED');
CREATE INDEX deliveries_leased ON deliveries (lease_until) WHERE state = 'IN_FLIGHT';
CREATE INDEX deliveries_by_device ON deliveries (app_id, user_id, device_id, delivery_id);

-- At most one delivery for each device and key in a window. Of the sync triggers that a window suppresses,
-- one delivery trails (trailed_by): it is due when the window ends, and takes the newest cursor, which is kept here.
CREATE TABLE dedupe_windows (
    app_id       text COLLATE "C" NOT NULL,
    user_id      text COLLATE "C" NOT NULL,
    device_id    text COLLATE "C" NOT NULL,
    dedupe_key   text COLLATE "C" NOT NULL,
    scope        text COLLATE "C" NOT NULL DEFAULT '',
    trails       boolean NOT NULL,
    opened_by    uuid NOT NULL,
    trailed_by   uuid,
    epoch        text COLLATE "C",
    sequence     bigint,
    window_until timestamptz NOT NULL,
    duration     interval NOT NULL,
    PRIMARY KEY (app_id, user_id, device_id, dedupe_key, scope),
    FOREIGN KEY (app_id, user_id, device_id) REFERENCES devices (app_id, user_id, device_id) ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX dedupe_windows_by_end ON dedupe_windows (window_until);
CREATE INDEX dedupe_windows_by_trailing ON dedupe_windows (app_id, trailed_by, user_id, device_id)
    WHERE trailed_by IS NOT NULL;

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['notifications', 'deliveries', 'dedupe_windows'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;
