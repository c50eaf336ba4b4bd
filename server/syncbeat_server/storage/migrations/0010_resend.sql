-- Wake-ups that nobody answered are sent again; how far pushes reach each device, and whether an app's work now.

ALTER TABLE deliveries
    -- When a silent wake-up that the provider took is looked at: was it answered? NULL: nobody waits for an answer.
    ADD COLUMN answer_by timestamptz,
    -- How many of the times at which it may be sent again were used.
    ADD COLUMN resends smallint NOT NULL DEFAULT 0;
CREATE INDEX deliveries_unanswered ON deliveries (answer_by)
    WHERE answer_by IS NOT NULL AND state IN ('SENT', 'RECEIVED', 'OPENED');

-- What a device was answered, beside what it has shown: up to where its own calls brought it, and since when.
ALTER TABLE device_cursors
    ADD COLUMN fetched bigint,
    ADD COLUMN fetched_at timestamptz;

-- What is left of a count made at a moment, if half of it goes in `half_life_s` seconds.
CREATE FUNCTION syncbeat_decay(counted_at timestamptz, half_life_s double precision) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN counted_at IS NULL THEN 0 ELSE power(0.5::float8, least(1000::float8, greatest(0::float8,
        extract(epoch FROM syncbeat_now() - counted_at)::float8 / half_life_s))) END
$$;

-- Wake-ups that the device answered, and that it did not: both as of reach_at, and half as many a day later
-- (push/reach.py).
ALTER TABLE devices
    ADD COLUMN reach_answered double precision NOT NULL DEFAULT 0,
    ADD COLUMN reach_missed double precision NOT NULL DEFAULT 0,
    ADD COLUMN reach_at timestamptz;

-- The share of a scope's latest commits that came with a trigger; NULL: none was counted.
ALTER TABLE scopes ADD COLUMN triggered_share double precision;

-- The same of an app, over devices that pushes are known to reach: of first tries, of second tries after a lost first,
-- of all tries together. As of counted_at, half as many a day later; the recent ones half as many ten minutes later.
CREATE TABLE app_reach (
    app_id          text COLLATE "C" PRIMARY KEY,
    first_answered  double precision NOT NULL DEFAULT 0,
    first_missed    double precision NOT NULL DEFAULT 0,
    second_answered double precision NOT NULL DEFAULT 0,
    second_missed   double precision NOT NULL DEFAULT 0,
    all_answered    double precision NOT NULL DEFAULT 0,
    all_missed      double precision NOT NULL DEFAULT 0,
    recent_answered double precision NOT NULL DEFAULT 0,
    recent_missed   double precision NOT NULL DEFAULT 0,
    counted_at      timestamptz,
    -- Until then its pushes are not to be relied on: a breaker is open, or they do not arrive.
    broken_until    timestamptz
) WITH (fillfactor = 50);

ALTER TABLE app_reach ENABLE ROW LEVEL SECURITY;
ALTER TABLE app_reach FORCE ROW LEVEL SECURITY;
CREATE POLICY service ON app_reach TO syncbeat_service USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON app_reach TO syncbeat_service;
