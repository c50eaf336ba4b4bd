-- What is known of a scope's changes (sync/policy/belief.py), its boost, and the last that was heard of its writers.

ALTER TABLE scopes
    DROP COLUMN change_rate,
    -- The belief as of changed_at: P(hot), and decayed counts and seconds while hot and while cold. No p_hot: no change yet.
    ADD COLUMN p_hot        double precision CHECK (p_hot BETWEEN 0 AND 1),
    ADD COLUMN hot_count    double precision NOT NULL DEFAULT 0,
    ADD COLUMN hot_s        double precision NOT NULL DEFAULT 0,
    ADD COLUMN cold_count   double precision NOT NULL DEFAULT 0,
    ADD COLUMN cold_s       double precision NOT NULL DEFAULT 0,
    -- Changes of the last minutes and hours, decayed up to changed_at: for policies that go by averages.
    ADD COLUMN recent_count double precision NOT NULL DEFAULT 0,
    ADD COLUMN long_count   double precision NOT NULL DEFAULT 0,
    -- A writer came (or left, when it is false) at presence_at.
    ADD COLUMN present      boolean NOT NULL DEFAULT false,
    ADD COLUMN presence_at  timestamptz,
    ADD COLUMN boosted       text CHECK (boosted IN ('IMMEDIATE', 'FAST', 'NORMAL', 'SLOW')),
    ADD COLUMN boosted_until timestamptz,
    ADD CONSTRAINT scopes_boost_ends CHECK ((boosted IS NULL) = (boosted_until IS NULL));
