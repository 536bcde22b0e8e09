const sweep = JSON.parse($('data').textContent);
const { fields, runs: all } = sweep;
const state = { metric: sweep.score, sort: 'run', descending: false, filter: '', run: sweep.best, reference: '' };
const short = field => field.replace(/^config\./, '');
const whole = run => `run ${run.run} ${run.setting} seed=${run.seed} ${run.method} ${run.status}`;
const better = (a, b) => sweep.smaller[state.metric] ? a - b : b - a;
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const labels = [...new Set(all.map(run => run.label))];
const place = name => labels.indexOf(name);

// The mean of n values and its 95 % interval, mean ± t s / √n.
function interval(values) {
  const count = values.length, mid = mean(values);
  if (count < 2) return { mean: mid, half: null, count };
  const deviation = Math.sqrt(values.reduce((sum, v) => sum + (v - mid) ** 2, 0) / (count - 1));
  return { mean: mid, half: sweep.quantiles[count - 2] * deviation / Math.sqrt(count), count };
}
function visible() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  return all.filter(run => words.every(word => whole(run).toLowerCase().includes(word)));
}
const ended = (run, metric) => run.status === 'done' && isNumber(run[metric]);
function bySetting(runs, metric) {
  const groups = new Map();
  for (const run of runs) groups.set(run.setting, [...(groups.get(run.setting) || []), run]);
  return [...groups].map(([name, begun]) => ({ name, begun, runs: begun.filter(run => ended(run, metric)) }))
    .filter(s => s.runs.length)
    .map(s => ({
      ...s, score: interval(s.runs.map(run => run[metric])), label: s.runs[0].label,
      trainable: s.runs[0].trainable, tflop: mean(s.runs.map(run => run.tflop)),
    }))
    .sort((a, b) => (sweep.smaller[metric] ? 1 : -1) * (a.score.mean - b.score.mean));
}
// Seed by seed, over the seeds that both settings have.
function difference(setting, reference) {
  if (!reference || setting.name === reference.name) return null;
  const theirs = new Map(reference.runs.map(run => [run.seed, run[state.metric]]));
  const found = setting.runs.filter(run => theirs.has(run.seed)).map(run => run[state.metric] - theirs.get(run.seed));
  return found.length ? interval(found) : null;
}
const plus = value => (value > 0 ? '+' : value < 0 ? '−' : '');
const signed = value => plus(value) + show(Math.abs(value));
// The ends of an interval, to two digits of its width.
function ends({ mean, half }, sign = value => (value < 0 ? '−' : '')) {
  if (half === null) return '';
  const digits = half > 0 ? Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(half)))) : 4;
  const [low, high] = [mean - half, mean + half].map(value => sign(value) + Math.abs(value).toFixed(digits));
  return `${low} to ${high}`;
}

function copyable(value) {
  const code = el('code', {}, value), button = el('button', { type: 'button' }, 'Copy');
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = 'Selected';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
  return el('div', { class: 'copy' }, code, button);
}
const test = sweep.score.replace('validation/', 'test/');
// Which step an adapter is of, and its scores.
function said(run, step, prefix) {
  const scores = [sweep.score, test].filter(name => isNumber(run[prefix + name])).map(name => `, ${name} ${show(run[prefix + name])}`);
  return el('small', {}, isNumber(step) ? `of step ${show(step)}${scores.join('')}` : '');
}
function card() {
  const run = all.find(each => each.run === state.run), parent = $('card');
  if (!run) { parent.replaceChildren(el('h2', {}, 'Best run'), el('p', {}, `No run has ended with a ${sweep.score} yet.`)); return; }
  const best = run.run === sweep.best, list = el('dl', {});
  const add = (name, ...content) => list.append(el('dt', {}, name), el('dd', {}, ...content));
  add('Setting', run.setting, ` · seed=${run.seed}`);
  for (const name of [sweep.score, test]) if (isNumber(run[name])) add(name, show(run[name]));
  if (run.status !== 'done') add('Status', run.status);
  add('Best adapter', ...(run.use.adapter ? [copyable(run.use.adapter), said(run, run.best_step, 'best/')] : ['none was kept']));
  if (run.use.last) add('Last adapter', copyable(run.use.last), said(run, run.steps, ''));
  add('Run it alone', copyable(run.use.command));
  const settings = JSON.stringify(JSON.parse(run.config), null, 2);
  add('All settings', copyable(run.use.config), el('details', {}, el('summary', {}, 'Show'), el('pre', {}, settings)));
  const title = el('h2', {}, best ? `Best run by ${sweep.score}: ${run.run}` : `Run ${run.run}`);
  parent.replaceChildren(title, list);
  if (!best && sweep.best !== null) {
    const back = el('button', { type: 'button' }, 'Show the best run');
    back.addEventListener('click', () => { state.run = sweep.best; render(); });
    parent.append(back);
  }
}
function front(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || better(a.y, b.y)), found = [];
  for (const point of sorted) if (!found.length || better(point.y, found[found.length - 1].y) < 0) found.push(point);
  return found;
}
function scatter(id, settings, key, xName) {
  const points = settings.filter(s => isNumber(s[key]) && s[key] > 0).map(s => ({ x: s[key], y: s.score.mean, half: s.score.half, s }));
  // Intervals of few seeds are wide: what reaches far beyond the means is cut at the edge.
  const means = points.map(p => p.y), room = Math.max(...means) - Math.min(...means) || Infinity;
  const reach = points.flatMap(p => [p.y - Math.min(p.half || 0, room), p.y + Math.min(p.half || 0, room)]);
  const axes = chart($(id), points.map(p => p.x), reach, { log: true, xName, yName: state.metric });
  if (!axes) return;
  draw(axes.svg, 'polyline', { points: front(points).map(p => `${axes.x(p.x)},${axes.y(p.y)}`).join(' '), class: 'front' });
  for (const p of points) {
    const own = place(p.s.label), same = points.filter(each => each.x === p.x && each.half !== null);
    // Intervals of settings of the same size stand side by side.
    const apart = Math.min(9, 40 / same.length);
    const x = axes.x(p.x) + (p.half === null ? 0 : apart * (same.indexOf(p) - (same.length - 1) / 2));
    if (p.half !== null)
      draw(axes.svg, 'line', { x1: x, x2: x, y1: axes.inside(axes.y(p.y - p.half)), y2: axes.inside(axes.y(p.y + p.half)), style: `stroke:${colour(own)};stroke-width:1.5` });
    hover(mark(axes.svg, own, x, axes.y(p.y)), `${p.s.name}: ${show(p.y)}${p.half === null ? '' : ` (${ends(p.s.score)})`}, ${show(p.x)} ${xName}`);
  }
}
function curves(runs) {
  const name = $('curve').value;
  const lines = runs.map(run => ({ run, points: (sweep.curves[run.run] || []).filter(p => isNumber(p[name])).map(p => [p.step, p[name]]) }));
  const points = lines.flatMap(line => line.points);
  const axes = chart($('curves'), points.map(p => p[0]), points.map(p => p[1]), { xName: 'step', yName: name, height: 340 });
  if (axes) for (const { run, points } of lines) {
    const own = place(run.label), style = `stroke:${colour(own)};stroke-dasharray:${DASHES[turn(own)]};stroke-width:${run.run === sweep.best ? 3 : 1.6}`;
    const line = draw(axes.svg, 'polyline', { points: points.map(p => `${axes.x(p[0])},${axes.y(p[1])}`).join(' '), fill: 'none', style });
    hover(points.length === 1 ? mark(axes.svg, own, axes.x(points[0][0]), axes.y(points[0][1])) : line, whole(run), run.run);
  }
}
function heat(runs) {
  const [down, across] = [$('down').value, $('across').value], parent = $('heat');
  const cells = runs.filter(run => ended(run, state.metric));
  parent.replaceChildren();
  $('map').hidden = fields.length < 2;
  $('said').textContent = down === across || !cells.length ? 'Choose two fields that differ between runs that have ended.' : `Each cell is the mean ${state.metric} of its runs that trained to their end.`;
  if (down === across || !cells.length) return;
  const [ys, xs] = [bands(cells.map(run => run[down])), bands(cells.map(run => run[across]))];
  const value = (a, b) => { const found = cells.filter(run => a.has(run[down]) && b.has(run[across])).map(run => run[state.metric]); return found.length ? mean(found) : null; };
  const values = ys.flatMap(a => xs.map(b => value(a, b))).filter(isNumber);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const left = 14 + 7 * Math.max(...ys.map(band => label(band).length), short(down).length);
  const w = Math.max(72, 12 + 7 * Math.max(...xs.map(band => label(band).length)), Math.min(130, (parent.clientWidth - left) / xs.length)), h = 40;
  const svg = draw(parent, 'svg', { width: left + xs.length * w, height: 44 + ys.length * h, role: 'img', style: 'max-width:none' });
  draw(svg, 'text', { x: left - 10, y: 34, 'text-anchor': 'end' }, `${short(down)} ↓`);
  draw(svg, 'text', { x: left, y: 14 }, `${short(across)} →`);
  xs.forEach((b, j) => draw(svg, 'text', { x: left + (j + 0.5) * w, y: 34, 'text-anchor': 'middle' }, label(b)));
  ys.forEach((a, i) => {
    draw(svg, 'text', { x: left - 10, y: 44 + (i + 0.5) * h, 'text-anchor': 'end' }, label(a));
    xs.forEach((b, j) => {
      const mid = value(a, b), share = mid === null ? 0 : (mid - low) / ((high - low) || 1);
      const good = sweep.smaller[state.metric] ? 1 - share : share;
      const style = mid === null ? 'fill:var(--code)' : `fill:color-mix(in srgb, var(--accent) ${Math.round(12 + 88 * good)}%, var(--paper))`;
      draw(svg, 'rect', { x: left + j * w + 1, y: 40 + i * h + 1, width: w - 2, height: h - 2, style, rx: 4 });
      if (mid !== null) draw(svg, 'text', { x: left + (j + 0.5) * w, y: 44 + (i + 0.5) * h, 'text-anchor': 'middle', class: good > 0.62 ? 'strong' : 'cell' }, show(+mid.toPrecision(4)));
    });
  });
}
function table(id, columns, lines, sorts) {
  const head = el('tr', {});
  for (const column of columns) {
    const th = el('th', { class: `${column.text ? 'text' : ''} ${sorts && column.key ? 'sorts' : ''}`, scope: 'col' }, ...column.name.split('/').flatMap((part, i) => i ? ['/', el('wbr', {}), part] : [part]));
    if (sorts && column.key) {
      const sort = () => { state.descending = state.sort === column.key && !state.descending; state.sort = column.key; render(); };
      if (state.sort === column.key) th.setAttribute('aria-sort', state.descending ? 'descending' : 'ascending');
      th.tabIndex = 0;
      th.addEventListener('click', sort);
      th.addEventListener('keydown', event => { if (event.key === 'Enter') sort(); });
    }
    head.append(th);
  }
  $(id).replaceChildren(el('thead', {}, head), el('tbody', {}, ...lines));
}
function settingsTable(settings, reference) {
  const columns = [{ name: 'setting', text: true }, { name: state.metric }, { name: '95 % interval' }, { name: 'difference' }, { name: 'its 95 % interval' }, { name: 'runs' }, { name: 'trained parameters' }, { name: 'TFLOP' }];
  const chosen = (bySetting(all, sweep.score)[0] || {}).name;
  const lines = settings.map(s => {
    const by = difference(s, reference), clear = by && by.half !== null && Math.abs(by.mean) > by.half;
    const count = s.runs.length === s.begun.length ? show(s.runs.length) : `${s.runs.length} of ${s.begun.length}`;
    const cells = [show(+s.score.mean.toPrecision(4)), ends(s.score), by ? signed(+by.mean.toPrecision(3)) : reference && s.name === reference.name ? 'reference' : '', by ? ends(by, plus) : '', count, show(s.trainable), show(s.tflop)];
    return { s, cells, clear };
  });
  // Without several seeds there are no intervals.
  const kept = columns.slice(1).map((_, i) => lines.some(line => line.cells[i] !== ''));
  table('settings', columns.filter((_, i) => !i || kept[i - 1]), lines.map(({ s, cells, clear }) => {
    const name = el('td', { class: 'text' }, s.name, ...(s.name === chosen ? [' ', el('span', { class: 'mark' }, '★ best')] : []));
    const rest = cells.map((v, i) => el('td', { 'data-name': columns[i + 1].name, class: clear && (i === 2 || i === 3) ? 'clear' : '' }, v));
    return el('tr', {}, name, ...rest.filter((_, i) => kept[i]));
  }));
}
function runsTable(runs) {
  const last = sweep.metrics.filter(name => !name.startsWith('best/') && all.some(run => name in run));
  const columns = [{ key: 'run', name: 'run', text: true }, { key: 'method', name: 'method', text: true }, ...fields.filter(f => f !== 'config.methods').map(f => ({ key: f, name: short(f) })),
    { key: 'status', name: 'status', text: true }, ...last.map(key => ({ key, name: key })),
    ...['trainable', 'tflop'].filter(k => all.some(run => k in run)).map(k => ({ key: k, name: k === 'tflop' ? 'TFLOP' : 'trained parameters' }))];
  const sorted = [...runs].sort((a, b) => {
    const [one, other] = [a[state.sort], b[state.sort]];
    const missing = (one === undefined || one === null) - (other === undefined || other === null);
    const by = missing || (one < other ? -1 : one > other ? 1 : 0);
    return missing ? missing : state.descending ? -by : by;
  });
  table('runs', columns, sorted.map(run => {
    const line = el('tr', { 'data-run': run.run, class: run.run === sweep.best ? 'best' : '' }, ...columns.map(c => el('td', { class: c.text ? 'text' : '' }, show(run[c.key]))));
    if (run.run === sweep.best) line.firstChild.append(' ', el('span', { class: 'mark' }, '★'));
    line.addEventListener('click', () => { state.run = run.run; card(); $('card').scrollIntoView({ behavior: 'smooth' }); });
    return line;
  }), true);
}
function render() {
  const runs = visible(), settings = bySetting(runs, state.metric);
  $('count').textContent = `${runs.length} of ${all.length} runs`;
  // The validation split chooses the reference, whatever is shown.
  const name = state.reference || (bySetting(runs, sweep.score)[0] || {}).name;
  const reference = settings.find(s => s.name === name);
  card();
  settingsTable(settings, reference);
  scatter('parameters', settings, 'trainable', 'trained parameters');
  scatter('cost', settings, 'tflop', 'TFLOP of matrix products');
  curves(runs);
  heat(runs);
  runsTable(runs);
}
function options(id, values, said) { $(id).append(...values.map(value => el('option', { value }, said(value)))); }
$('title').textContent = document.title = `Sweep ${sweep.sweep}`;
$('about').textContent = `${sweep.config}${sweep.commit ? `, commit ${sweep.commit.slice(0, 12)}` : ''}; ${sweep.counts}`;
options('metric', sweep.metrics, name => name);
options('curve', sweep.curve_names, name => name);
options('reference', ['', ...new Set(all.map(run => run.setting))], name => name || `the best by ${sweep.score}`);
for (const [id, place] of [['down', 0], ['across', 1]]) {
  options(id, fields, short);
  const varied = [...fields.filter(f => f !== 'config.seed'), ...fields.filter(f => f === 'config.seed')];
  if (varied.length > 1) $(id).value = varied[place];
}
for (const node of document.querySelectorAll('.legend'))
  node.replaceChildren(el('b', {}, sweep.legend), ...labels.map((name, i) => {
    const said = el('span', {});
    mark(draw(said, 'svg', { width: 16, height: 16 }), i, 8, 8);
    said.append(name);
    return said;
  }));
for (const [id, key] of [['metric', 'metric'], ['filter', 'filter'], ['reference', 'reference']])
  $(id).addEventListener(id === 'filter' ? 'input' : 'change', event => { state[key] = event.target.value; render(); });
$('curve').addEventListener('change', () => curves(visible()));
for (const id of ['down', 'across']) $(id).addEventListener('change', () => heat(visible()));
let width = innerWidth;
addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; render(); } });
render();
