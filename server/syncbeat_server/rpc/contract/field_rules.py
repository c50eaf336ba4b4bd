"""Defines the rules of a request field, as the server evaluates them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldRules:
    """Bounds of what a field may hold. `field_rules.proto` says what each rule means and what its absence does."""

    required: bool = False
    max_bytes: int = 0
    max_items: int = 0
    min_value: int | None = None
    max_value: int | None = None
    min_millis: int | None = None
    max_millis: int | None = None
    json: bool = False
    max_depth: int = 0
    multiline: bool = False
    acting_user: bool = False
    visible_ascii: bool = False
