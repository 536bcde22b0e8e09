const $ = id => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';
const COLOURS = 8;

function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function draw(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
const isNumber = value => typeof value === 'number' && Number.isFinite(value);
function show(value) {
  if (value === null || value === undefined) return '';
  if (!isNumber(value)) return String(value);
  if (Number.isInteger(value)) return value.toLocaleString('en');
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? String(+value.toPrecision(4)) : value.toExponential(2);
}
// A mark of its own for each of 32 labels: eight colours, then other shapes and dashes.
const SHAPES = [
  (x, y) => `M${x - 6},${y} a6,6 0 1,0 12,0 a6,6 0 1,0 -12,0`, (x, y) => `M${x - 5.5},${y - 5.5} h11 v11 h-11 z`,
  (x, y) => `M${x},${y - 7} l7,12 h-14 z`, (x, y) => `M${x},${y - 7.5} l7.5,7.5 l-7.5,7.5 l-7.5,-7.5 z`,
];
const DASHES = ['none', '7 4', '2 3', '9 3 2 3'];
const colour = i => `var(--c${i % COLOURS})`;
const turn = i => Math.floor(i / COLOURS) % SHAPES.length;
const mark = (parent, i, x, y) => draw(parent, 'path', { d: SHAPES[turn(i)](x, y), class: 'mark', style: `fill:${colour(i)}` });

const compact = value => Math.abs(value) < 1e4 ? show(value) : new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 }).format(value);

function hover(node, text, run) {
  node.addEventListener('mousemove', event => {
    const tip = $('tip');
    tip.textContent = text;
    tip.style.display = 'block';
    tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
    if (run) for (const line of document.querySelectorAll('#runs tr')) line.classList.toggle('lit', line.dataset.run === run);
  });
  node.addEventListener('mouseleave', () => { $('tip').style.display = 'none'; });
}
// Round numbers between two ends.
function ticks(low, high, count) {
  const span = (high - low) || Math.abs(high) || 1, raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9 * span; value += step) found.push(+value.toPrecision(12));
  return found;
}
// Of a logarithmic axis: 1, 2 and 5 times powers of ten, fewer of them where there are many.
function logTicks(low, high, count) {
  for (const parts of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = Math.floor(low); power <= Math.ceil(high); power++)
      for (const part of parts) if (Math.log10(part) + power >= low && Math.log10(part) + power <= high) found.push(+(part * 10 ** power).toPrecision(3));
    if (found.length <= count && found.length > 1) return found;
  }
  return ticks(10 ** low, 10 ** high, Math.min(count, 4));
}
// Axes in the width that there is, so that letters keep their size on a phone.
function chart(parent, xs, ys, { log, xName, yName, height = 320 }) {
  parent.replaceChildren();
  if (!xs.length) { parent.append(el('p', {}, 'Nothing to show yet.')); return null; }
  const width = Math.max(260, parent.clientWidth);
  const svg = draw(parent, 'svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': `${yName} against ${xName}` });
  const left = 62, right = 16, top = 26, bottom = 44;
  const f = log ? Math.log10 : value => value;
  let [x0, x1] = [Math.min(...xs.map(f)), Math.max(...xs.map(f))];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const px = (x1 - x0 || (log ? 0.5 : 1)) * 0.06, py = (y1 - y0 || Math.abs(y1) * 0.1 || 1) * 0.08;
  [x0, x1, y0, y1] = [x0 - px, x1 + px, y0 - py, y1 + py];
  const x = value => left + (f(value) - x0) / (x1 - x0) * (width - left - right);
  const y = value => height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom);
  for (const tick of ticks(y0, y1, 5)) {
    draw(svg, 'line', { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: 'grid' });
    draw(svg, 'text', { x: left - 6, y: y(tick) + 4, 'text-anchor': 'end' }, show(tick));
  }
  const most = Math.max(2, Math.floor((width - left - right) / 70));
  for (const tick of log ? logTicks(x0, x1, most) : ticks(x0, x1, most).filter(Number.isInteger))
    draw(svg, 'text', { x: x(tick), y: height - bottom + 17, 'text-anchor': 'middle' }, compact(tick));
  draw(svg, 'text', { x: (left + width - right) / 2, y: height - 6, 'text-anchor': 'middle' }, xName);
  draw(svg, 'text', { x: 4, y: 13 }, yName);
  const inside = place => Math.max(top, Math.min(height - bottom, place));
  return { svg, x, y, inside };
}
// Sets of values that share a line of the map: each its own, of many numbers some neighbours.
function bands(all) {
  const values = [...new Set(all)].sort((a, b) => isNumber(a) && isNumber(b) ? a - b : String(a) < String(b) ? -1 : 1);
  const count = values.length > 8 && values.every(isNumber) ? 6 : values.length;
  return Array.from({ length: count }, (_, i) => new Set(values.slice(Math.round(i * values.length / count), Math.round((i + 1) * values.length / count))));
}
const label = band => { const all = [...band]; return all.length > 1 ? `${show(all[0])} to ${show(all[all.length - 1])}` : show(all[0]) || 'not set'; };
