"""Holds the style of the page: light, and dark where the reader's system is. Lines have the colours of `simulate`'s."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --ink: #333333; --dim: #666666; --ground: #ffffff; --card: #f6f7f8; --grid: #d9dcdf; --ok: #117733;
  --warn: #9a6700; --rollback: #b3261e; --poll: #117733; --list: #777777; --publish: #4477aa; --refresh: #bb8844;
  --event: #882255; --push: #cc6677; --stream: #332288; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e8; --dim: #a3a9b0; --ground: #15181b; --card: #1e2226; --grid: #343a40; --ok: #4fbf78;
    --warn: #e0a93b; --rollback: #f2766c; --poll: #4fbf78; --list: #b0b5ba; --publish: #7fb2e5; --refresh: #e0b070;
    --event: #d987b4; --push: #f09aa6; --stream: #a99cf0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; }
.verdict { display: inline-block; margin: 0 0 1rem; padding: .2rem .8rem; border-radius: .4rem; font-weight: 700;
  border: 2px solid currentColor; }
p.ok, td.ok { color: var(--ok); } p.warn, td.warn { color: var(--warn); }
p.rollback, td.rollback { color: var(--rollback); } td.ok, td.warn, td.rollback { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--dim); font-weight: 500; }
th:first-child, td:first-child, .text th:nth-child(2), .text td:nth-child(2) { text-align: left; }
figure { margin: 1rem 0 0; padding: .8rem; background: var(--card); border-radius: .5rem; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--grid); stroke-width: 1; }
.tick, .threshold-name { fill: var(--dim); font: 11px system-ui, sans-serif; }
.tick.y, .threshold-name { text-anchor: end; } .tick.x { text-anchor: middle; }
.threshold { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.none { color: var(--dim); margin: 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .4rem 0 0; padding: 0; list-style: none;
  font-size: .85rem; color: var(--dim); }
.legend i { display: inline-block; width: .9rem; height: .25rem; margin-right: .35rem; vertical-align: middle;
  border-radius: .1rem; }
""" + "\n".join(
    f".line.{name} {{ stroke: var(--{colour}); }} rect.{name} {{ fill: var(--{colour}); }} "
    f"i.{name} {{ background: var(--{colour}); }}"
    for name, colour in (
        *((name, name) for name in ("poll", "list", "publish", "refresh", "event", "push", "stream")),
        *((name, name) for name in ("ok", "warn", "rollback")),
        ("bad", "rollback"),
    )
)
