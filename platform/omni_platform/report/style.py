"""How the page looks, in light and in dark: one style sheet, no font and no script from anywhere."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --quiet: #5f6670; --rule: #d9dce0; --grid: #e8eaed;
  --first: #2a6db0; --second: #c2691c; --band: #2a6db01a; --look: #6b7280;
  --good: #1f7a43; --bad: #b3372f; --shade: #f5f6f7;
  --run0: #2a6db0; --run1: #c2691c; --run2: #2e8b57; --run3: #a23b72; --run4: #7a5c1e; --run5: #5b5fc7; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e4e6e9; --quiet: #9aa2ad; --rule: #363b42;
  --grid: #272b31; --first: #62a5e8; --second: #eb9b52; --band: #62a5e826; --look: #8b939e;
  --good: #63c48a; --bad: #f08279; --shade: #1d2024; --run0: #62a5e8; --run1: #eb9b52;
  --run2: #63c48a; --run3: #dd86b6; --run4: #cdb06a; --run5: #a3a6f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 980px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2.75rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.verdict { margin: 1.25rem 0; padding: .75rem 1rem; border-left: 3px solid var(--first); background: var(--shade);
  font-size: 1.05rem; max-width: none; }
.quiet { color: var(--quiet); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-size: .83rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; vertical-align: baseline; white-space: nowrap; }
thead th { font-weight: 600; border-bottom: 1px solid var(--ink); }
tbody td { border-bottom: 1px solid var(--grid); }
th.number, td.number { text-align: right; padding: .22rem 0 .22rem .8rem; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--quiet); }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--quiet); }
svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
svg text { fill: var(--ink); font: 12.5px system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
svg text.quiet { fill: var(--quiet); font-size: 11.5px; } svg text.small { fill: var(--paper); font-size: 11px; }
/* Pale enough that an interval can be seen within its bar. */
.bar { fill-opacity: .6; } .first { fill: var(--first); } .second { fill: var(--second); }
.grid { stroke: var(--grid); } .axis { stroke: var(--quiet); }
.whisker { stroke: var(--ink); stroke-width: 1.3; fill: none; }
.chance { stroke: var(--ink); stroke-width: 1.6; stroke-dasharray: 3 2; }
.ceiling { stroke: var(--bad); stroke-width: 2; }
.sound { fill: var(--quiet); opacity: .75; } .band { fill: var(--band); } .look { fill: var(--look); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: .75rem 1rem; }
.panels figcaption { padding-left: 40px; } .panels svg { margin: .15rem 0 0; }
.run { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .dashed { stroke-dasharray: 5 3; }
.run0 { stroke: var(--run0); } .run1 { stroke: var(--run1); } .run2 { stroke: var(--run2); }
.run3 { stroke: var(--run3); } .run4 { stroke: var(--run4); } .run5 { stroke: var(--run5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; padding: 0; margin: .5rem 0 1rem;
  font-size: .9rem; }
.key { display: inline-block; width: 24px; height: 8px; margin: 0 .5rem 0 0; vertical-align: middle; }
article { margin: 1.5rem 0 2rem; } article p { margin: 0 0 .15rem; max-width: none; }
.right { color: var(--good); } .wrong { color: var(--bad); } .said { overflow-wrap: anywhere; }
code, pre { font: .85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { padding: .75rem 1rem; background: var(--shade); white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; } article, figure, tr { break-inside: avoid; } }
"""
