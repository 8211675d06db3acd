"""How report.html looks: light and dark by the reader's choice, on narrow screens and on paper."""

from __future__ import annotations

from typing import Final

SHEET: Final = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#59616b;--line:#d9dde2;--back:#fff;--card:#f5f6f8;--link:#0b5cad;
--warn:#8a4b00;--warnback:#fff6e6;--open:#5b3a8c}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#a3abb5;--line:#343a42;--back:#14171a;--card:#1d2125;
--link:#7ab8ff;--warn:#ffc06b;--warnback:#2b2214;--open:#c7a8f5}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem}
body{margin:0 auto;max-width:76rem;padding:1.5rem clamp(1rem,3vw,2.5rem) 4rem;background:var(--back);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:anywhere}
a{color:var(--link);text-underline-offset:.15em}a:focus-visible,.scroll:focus-visible{outline:3px solid var(--link);
outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:var(--back);padding:.5rem}
h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.15;margin:.2rem 0 .6rem;text-wrap:balance}
h2{font-size:1.35rem;line-height:1.25;margin:0 0 .8rem}h3{font-size:1rem;margin:0 0 .35rem}
.lead{font-size:1.1rem;color:var(--soft);max-width:48rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.1rem 2rem;margin:1.2rem 0;
border-top:1px solid var(--line)}
dl div{display:grid;grid-template-columns:7rem 1fr;gap:.5rem;padding:.4rem 0;border-bottom:1px solid var(--line)}
dt{color:var(--soft)}dd{margin:0}
.note{border-left:4px solid var(--warn);background:var(--warnback);padding:.5rem .8rem;margin:.6rem 0}
nav{margin:1.5rem 0}nav ul{columns:20rem;padding:0;margin:0;list-style:none}nav li{break-inside:avoid;padding:.12rem 0}
main>section{border-top:2px solid var(--line);padding:1.6rem 0 .6rem}
.cards{list-style:none;margin:0 0 1rem;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));
gap:.7rem}
.cards li{background:var(--card);border-radius:.5rem;padding:.7rem .9rem;display:flex;flex-direction:column}
.cards .n{font-size:1.7rem;line-height:1.2}.cards span:last-child{color:var(--soft);font-size:.9rem}
.n{font-weight:650;font-variant-numeric:tabular-nums}.n.none{color:var(--soft);font-weight:400}
.id{display:inline-block;background:var(--card);border:1px solid var(--line);border-radius:.35rem;padding:0 .45rem;
font-size:1.1rem}
main>section:has(.part){display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:.2rem 2rem}
main>section:has(.part)>h2{grid-column:1/-1}
.part ul{margin:0 0 1rem;padding-left:1.1rem}.part li{margin:.2rem 0}
.look h3,.look a.n{color:var(--warn)}.open h3{color:var(--open)}
.scroll{overflow-x:auto;margin:.5rem 0 1.2rem;border:1px solid var(--line);border-radius:.4rem}
table{border-collapse:collapse;font-size:.85rem;min-width:100%;overflow-wrap:normal}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line);max-width:26rem}
td code{display:inline-block;min-width:8rem}td.by{min-width:17rem}td.t{min-width:6.4rem}
tr:last-child td{border-bottom:0}
th{background:var(--card);color:var(--soft);font-weight:600;white-space:nowrap}.r{text-align:right;
font-variant-numeric:tabular-nums}
code{font:.92em/1.4 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.rows section{padding-top:.8rem}.from{color:var(--soft);margin:0}
@media (max-width:40rem){dl div{grid-template-columns:1fr;gap:0}.cards{grid-template-columns:1fr 1fr}}
@media print{:root{--ink:#000;--soft:#444;--back:#fff;--card:#f2f2f2;--link:#000;--line:#bbb;--warn:#000;--open:#000;
--warnback:#f2f2f2}body{max-width:none;padding:0;font-size:10pt}nav,.skip{display:none}a{text-decoration:none}
h2,h3{break-after:avoid}tr,.part,.cards li{break-inside:avoid}.scroll{overflow:visible;border:0}
table{font-size:7pt}thead{display:table-header-group}@page{margin:16mm 14mm}}
"""
