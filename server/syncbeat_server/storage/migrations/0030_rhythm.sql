-- What an app's scopes have in common over a week (sync/policy/rhythm.py: WeekEvidence): the changes sampled in each hour
-- of it and the seconds in which they were, both of which fade within weeks; then the echo. None before the first fit.
--
-- NOT VALID: it holds for all that is written from now on, and what is there is NULL, for which no row has to be read.
ALTER TABLE app_learning
    ADD COLUMN rhythm double precision[],
    ADD CONSTRAINT app_learning_rhythm CHECK (cardinality(rhythm) = 337) NOT VALID;
