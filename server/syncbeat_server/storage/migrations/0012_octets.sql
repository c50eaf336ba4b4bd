-- How large each value is for who reads it, so that a page can end before it is too large without reading the values.

ALTER TABLE changes ADD COLUMN octets int NOT NULL
    GENERATED ALWAYS AS (coalesce(octet_length(value::text), 0)) STORED;
