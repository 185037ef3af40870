"""What a timeline's page is made of besides its charts: style and script. It fetches nothing from anywhere."""

from __future__ import annotations

# The page may run its own script and style and load nothing: a browser holds it to that.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --surface: #fff; --ink: #1b1f24; --muted: #57606a; --grid: #d0d7de }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--surface); color: var(--ink);
  font: 1rem/1.45 system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif }
h1 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 1.75rem 0 .4rem }
p { margin: .25rem 0 }
.soft, caption, th { color: var(--muted) }
figure { position: relative; margin: 1rem 0 0 }
figure svg { display: block; width: 100%; height: auto; touch-action: pan-y; cursor: crosshair }
figure svg:focus-visible { outline: 2px solid #56b4e9; outline-offset: 2px }
.narrow { display: none; max-width: 32rem; margin: 0 auto }
@media (max-width: 44rem) { figure .narrow { display: block } figure .wide { display: none } }
.tip { position: absolute; pointer-events: none; min-width: 12rem; max-width: min(24rem, 80%);
  padding: .5rem .7rem; border: 1px solid var(--grid); border-radius: .4rem; background: var(--surface);
  box-shadow: 0 2px 10px #0004; font-size: .85rem; line-height: 1.35 }
.tip b { display: block } .tip i { font-style: normal; color: var(--muted) }
.tip div { display: flex; gap: .5rem; align-items: baseline }
.tip span:first-child { width: .7rem; height: .7rem; border-radius: 2px; flex: none }
.tip span:last-child { margin-left: auto; padding-left: 1rem; font-variant-numeric: tabular-nums }
.tip small { display: block; margin-top: .35rem; color: var(--muted); overflow-wrap: anywhere }
@media (max-width: 32rem) { body { padding: 1rem .5rem } }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--grid); vertical-align: top }
th { font-weight: 600 }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
td.path { overflow-wrap: anywhere; min-width: 9rem }
@media (prefers-color-scheme: dark) {
  :root { --surface: #12161c; --ink: #e6edf3; --muted: #9aa5b1; --grid: #30363d }
}
"""

# Pointer, touch and arrow keys move a line over the chart; a box beside it names what is there.
SCRIPT = """
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const figure = document.querySelector('figure');
const tip = document.querySelector('.tip');

function size(bytes) {
  for (const [unit, least, digits] of data.units)
    if (bytes >= unit * least) return (bytes / unit).toFixed(digits) + ' ' + data.names[unit];
  return bytes + ' B';
}
function add(parent, tag, text, colour) {
  const made = parent.appendChild(document.createElement(tag));
  if (text !== undefined) made.textContent = text;
  if (colour) made.style.background = colour;
  return made;
}
function fill(i) {
  const phase = data.phases[data.phaseOf[i]];
  tip.replaceChildren();
  add(tip, 'b', size(data.totals[i]) + (i === data.peak ? ', the peak' : ''));
  add(tip, 'i', phase + ', event ' + data.events[i].toLocaleString('en'));
  for (let g = data.groups.length - 1; g >= 0; g--) {
    if (!data.series[g][i]) continue;
    const row = add(tip, 'div');
    add(row, 'span', '', data.groups[g][1]);
    add(row, 'span', data.groups[g][0]);
    add(row, 'span', size(data.series[g][i]));
  }
  if (i === data.peak) for (const text of data.largest) add(tip, 'small', text);
}
for (const svg of figure.querySelectorAll('svg')) {
  const {xs, left, right, top, bottom, width} = data.shapes[svg.dataset.shape];
  const line = svg.querySelector('.cursor');
  let at = data.peak;
  function show(i) {
    at = i;
    line.setAttribute('x1', xs[i]);
    line.setAttribute('x2', xs[i]);
    line.style.visibility = 'visible';
    fill(i);
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), scale = box.width / width, room = figure.clientWidth;
    const x = box.left - figure.getBoundingClientRect().left + xs[i] * scale;
    const beside = x + 14 + tip.offsetWidth <= room ? x + 14 : x - 14 - tip.offsetWidth;
    // where it cannot stand beside the line, it stands below the chart
    const below = beside < 0;
    tip.style.left = (below ? Math.max(0, room - tip.offsetWidth) / 2 : beside) + 'px';
    const middle = Math.max(0, (top + bottom) / 2 * scale - tip.offsetHeight / 2);
    tip.style.top = (below ? bottom * scale + 4 : middle) + 'px';
  }
  function hide() { line.style.visibility = 'hidden'; tip.hidden = true; }
  function nearest(x) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    const best = x - xs[low] < xs[high] - x ? low : high;
    return Math.abs(xs[data.peak] - x) <= 4 ? data.peak : best; // a peak is narrow: it takes what is near
  }
  svg.addEventListener('pointermove', e => {
    const box = svg.getBoundingClientRect(), x = (e.clientX - box.left) * width / box.width;
    if (x < left - 8 || x > right + 8) hide(); else show(nearest(x));
  });
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', e => {
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 25, PageDown: at + 25,
      Home: 0, End: xs.length - 1, Enter: data.peak}[e.key];
    if (e.key === 'Escape') hide();
    if (to === undefined) return;
    e.preventDefault();
    show(Math.max(0, Math.min(to, xs.length - 1)));
  });
}
"""
