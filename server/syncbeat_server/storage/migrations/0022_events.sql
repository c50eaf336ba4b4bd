-- Events of other systems, each once, and what their order goes by.

CREATE TABLE events (
    app_id          text COLLATE "C" NOT NULL,
    source          text COLLATE "C" NOT NULL,
    event_id        text COLLATE "C" NOT NULL,
    -- Tells a repetition from another event under the same id.
    content_hash    bytea NOT NULL,
    caller          text NOT NULL,
    type            text NOT NULL,
    subject         text NOT NULL,
    ordering_key    text COLLATE "C" NOT NULL,
    occurred_at     timestamptz NOT NULL,
    -- As it came, for the record: text, since jsonb would write it anew.
    payload         text NOT NULL,
    state           text COLLATE "C" NOT NULL CHECK (state IN ('ACCEPTED', 'STALE', 'FAILED')),
    first_seen_at   timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    deadline_at     timestamptz NOT NULL,
    attempts        integer NOT NULL,
    duplicate_count bigint NOT NULL DEFAULT 0,
    -- Of one whose effects were carried out: new heads and notifications, for those who send it again.
    result          jsonb,
    -- Of one that FAILED: the cause, and what is to be carried out at the next attempt. A claim of a worker moves that time on.
    failure         text NOT NULL DEFAULT '',
    effects         jsonb,
    next_attempt_at timestamptz,
    PRIMARY KEY (app_id, source, event_id),
    CHECK ((state = 'FAILED') = (effects IS NOT NULL)),
    CHECK (next_attempt_at IS NULL OR state = 'FAILED')
);
-- Lists are newest first and go state by state, so that no list walks past events in other states.
CREATE INDEX events_by_state ON events (app_id, state, first_seen_at, source, event_id);
CREATE INDEX events_of_source_by_state ON events (app_id, source, state, first_seen_at, event_id);
CREATE INDEX events_by_age ON events (first_seen_at);
CREATE INDEX events_due ON events (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX events_waiting ON events (first_seen_at) WHERE next_attempt_at IS NOT NULL;

-- The latest event of a source and ordering key whose effects were carried out. An earlier one is STALE.
CREATE TABLE event_order_heads (
    app_id       text COLLATE "C" NOT NULL,
    source       text COLLATE "C" NOT NULL,
    ordering_key text COLLATE "C" NOT NULL,
    occurred_at  timestamptz NOT NULL,
    event_id     text COLLATE "C" NOT NULL,
    -- Moved on once a day at most, so that other updates touch no index.
    moved_at     timestamptz NOT NULL,
    PRIMARY KEY (app_id, source, ordering_key)
) WITH (fillfactor = 70);
CREATE INDEX event_order_heads_by_age ON event_order_heads (moved_at);

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['events', 'event_order_heads'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY service ON %I TO syncbeat_service USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO syncbeat_service', t);
    END LOOP;
END $$;
