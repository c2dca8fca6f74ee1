// The page: a pad or number fields, the answer, what decided it, and patterns; the arithmetic is in rpn.js, the pad in pad.js.
// window.lesson has logits(values), probabilities(values) and explain(values, output), for greys from 0 to 255 or for numbers.
(() => {
  const $ = id => document.getElementById(id);
  const make = (name, attributes = {}, ...children) => {
    const e = document.createElement(name);
    for (const [k, v] of Object.entries(attributes)) if (v !== null) e.setAttribute(k, v);
    e.append(...children);
    return e;
  };

  // ---- in a frame of another page: the stage alone (see lesson.css), light or dark as that page is, the frame as high as the stage

  function asAround() {
    const around = window.parent.document.body, [r, g, b] = getComputedStyle(around).backgroundColor.match(/[\d.]+/g);
    document.documentElement.style.colorScheme = 0.3*r + 0.6*g + 0.1*b < 100 ? 'dark' : 'light';
  }
  function inFrame() {
    document.documentElement.classList.add('framed');
    try {
      asAround();
      new ResizeObserver(([{target}]) => { window.frameElement.style.height = `${target.offsetHeight + 3}px`; }).observe(document.querySelector('main'));
      const look = () => { asAround(); setTimeout(asAround, 300); }, root = window.parent.document.documentElement; // a style sheet may come later
      for (const e of [root, window.parent.document.body]) new MutationObserver(look).observe(e, {attributes: true, attributeFilter: ['class']});
      window.parent.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', look);
    } catch { /* a page from elsewhere, or a file, keeps its looks to itself */ }
  }
  if (window.parent !== window.self) inFrame();

  // ---- the numbers that Python wrote: {float32: base64, rows, columns} is a matrix, {uint8: ...} and {int8: ...} are bytes

  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  function revive(key, value) {
    if (value?.float32 !== undefined) return matrix(value.rows, value.columns, new Float32Array(bytes(value.float32).buffer));
    if (value?.uint8 !== undefined) return bytes(value.uint8);
    return value?.int8 !== undefined ? new Int8Array(bytes(value.int8).buffer) : value;
  }
  const page = JSON.parse($('model').textContent, revive);
  const network = rpn(page), {image, names, classes} = page, {scaler} = page;

  function prepared(values) { // as the first layer takes them
    const x = Float64Array.from(values, v => (v/(image ? 255 : 1) - page.mean)/page.std);
    return scaler ? x.map((v, i) => (v - scaler.centre.data[i])/scaler.scale.data[i] + scaler.start) : x;
  }
  const blank = prepared(new Float64Array(page.inputs)), nothing = image ? blank : new Float64Array(page.inputs);
  const logits = values => Array.from(network.forward(prepared(values)).outputs);
  const probabilities = values => Array.from(softmax(logits(values)));
  const explain = (values, output) => network.explain(prepared(values), output, nothing);

  // ---- text

  const percent = p => p > 0.9995 && p < 1 ? '>\u00a099.9\u00a0%' : `${(100*p).toFixed(1)}\u00a0%`;
  const said = p => percent(p).replace('>', 'more than');
  const signed = v => (v < 0 ? '\u2212' : '+') + (Math.abs(v) >= 1e6 ? Math.abs(v).toExponential(1) : Math.abs(v) >= 100 ? Math.abs(v).toFixed(0) : Math.abs(v).toPrecision(2));
  const plain = v => signed(v).replace('+', '');
  const place = i => image ? `row ${Math.floor(i/image.width) + 1}, column ${i % image.width + 1}` : names[i];

  // ---- the answer

  const bars = classes.map((name, i) => {
    const fill = make('span'), share = make('span', {class: 'share'});
    const button = make('button', {type: 'button', title: `What decided about ${name}?`}, make('span', {}, name), make('span', {class: 'bar'}, fill), share);
    button.addEventListener('click', () => ask(i));
    return {button, fill, share};
  });
  $('bars').style.setProperty('--label', `${Math.min(9, 0.4 + 0.65*Math.max(...classes.map(c => c.length)))}em`); // as wide as the longest name, up to a limit
  $('bars').append(...bars.map(b => b.button));

  let values = new Float64Array(page.inputs), asked = null, best = 0, spoken = 0; // asked: the class that is explained, null for the answer whichever it is

  function ask(i) {
    asked = i === best ? null : i;
    document.documentElement.classList.add('asked'); // a narrow frame then shows what decided
    explainNow();
  }

  function predict() {
    const out = logits(values);
    if (!out.every(Number.isFinite)) return noAnswer();
    const p = page.probabilities ? Array.from(softmax(out)) : null, most = Math.max(...out.map(Math.abs)) || 1;
    best = out.indexOf(Math.max(...out));
    out.forEach((v, i) => {
      bars[i].share.textContent = p ? percent(p[i]) : plain(v);
      bars[i].fill.style.width = `${100*(p ? p[i] : Math.abs(v)/most)}%`;
    });
    const empty = image && !values.some(v => v), answer = p ? `${classes[best]}, ${said(p[best])}` : out.map((v, i) => `${classes[i]} ${plain(v)}`).join(', ');
    $('answer').replaceChildren(...(p ? [make('b', {}, classes[best]), ` with ${said(p[best])}${empty ? ' (for an empty page)' : ''}`] : [answer]));
    clearTimeout(spoken);
    spoken = setTimeout(() => { $('spoken').textContent = `Answer: ${answer}`; }, 500); // once a hand rests
  }

  function noAnswer() {
    for (const {share, fill} of bars) { share.textContent = '\u2013'; fill.style.width = 0; }
    $('answer').textContent = 'No answer: a number is too large';
    clearTimeout(spoken);
    spoken = setTimeout(() => { $('spoken').textContent = $('answer').textContent; }, 500);
  }

  // ---- what decided

  const BLUE = [108, 176, 255], ORANGE = [255, 162, 77]; // on black
  const colour = (adds, alpha) => `rgba(${adds > 0 ? BLUE : ORANGE},${alpha})`;

  function drawShares(on, shares, size) {
    const most = Math.max(...shares.map(Math.abs)) || 1;
    shares.forEach((v, i) => {
      if (!v) return;
      on.fillStyle = colour(v, Math.abs(v)/most);
      on.fillRect(i % image.width*size, Math.floor(i/image.width)*size, size, size);
    });
  }
  function drawPairs(on, pairs, size) {
    const most = Math.abs(pairs[0]?.adds) || 1, at = i => [(i % image.width + 0.5)*size, (Math.floor(i/image.width) + 0.5)*size];
    for (const {i, j, adds} of [...pairs].reverse()) {
      const share = Math.abs(adds)/most;
      on.strokeStyle = on.fillStyle = colour(adds, 0.35 + 0.65*share);
      on.lineWidth = size*(0.1 + 0.25*share);
      on.setLineDash(adds > 0 ? [] : [size*0.6, size*0.4]);
      on.beginPath(); on.moveTo(...at(i)); on.lineTo(...at(j)); on.stroke();
      for (const end of [at(i), at(j)]) { on.beginPath(); on.arc(...end, size*0.28, 0, 7); on.fill(); }
    }
  }
  // What a pixel adds, alone and as half of its pairs
  function shares({pairs, alone}) {
    const m = page.inputs, out = Float64Array.from(alone);
    for (let i = 0; i < m; i++) for (let j = i + 1; j < m; j++) if (pairs[i*m + j]) { out[i] += pairs[i*m + j]/2; out[j] += pairs[i*m + j]/2; }
    return out;
  }

  function explainNow() {
    const unit = asked ?? best, found = explain(values, unit);
    bars.forEach((b, i) => b.button.setAttribute('aria-pressed', i === unit));
    if (image) {
      const canvas = $('picture'), on = canvas.getContext('2d'), size = canvas.width/image.width, many = Number($('many').value);
      $('chosen').textContent = classes[unit];
      on.clearRect(0, 0, canvas.width, canvas.height);
      drawGrey(on, values, image.width, size, $('heat').checked ? 0.25 : 0.5);
      if ($('heat').checked) drawShares(on, shares(found), size);
      const pairs = many ? found.strongest(many) : [];
      drawPairs(on, pairs, size);
      $('many-shown').textContent = many;
      canvas.setAttribute('aria-label', `The ${pairs.length} pairs of pixels that decided most about ${classes[unit]}: ${pairs.filter(p => p.adds > 0).length} speak for it, ${pairs.filter(p => p.adds < 0).length} against; the strongest are listed below`);
    }
    inWords(found, classes[unit]);
  }

  function inWords(found, name) {
    const {sums, total, output} = found, finite = [...Object.values(sums), total, output].every(Number.isFinite);
    if (!finite) { $('sums').textContent = 'Nothing can be said: a number is too large.'; $('pairs').tBodies[0].replaceChildren(); return; }
    const what = page.probabilities ? 'logit' : 'result';
    const parts = `pairs ${signed(sums.pairs)}, single ${image ? 'pixels' : 'inputs'} ${signed(sums.alone)}, constant ${signed(sums.constant)}`;
    $('sums').textContent = page.exact ? `The ${what} for ${name} is ${plain(output)}: ${parts}.`
      : `The ${what} for ${name} is ${plain(output)}. The first layer, weighed by what follows, says ${plain(total)}: ${parts}.`;
    const list = page.quadratic ? found.strongest(8) : [...found.alone].map((adds, i) => ({i, adds})).filter(p => p.adds).sort((a, b) => Math.abs(b.adds) - Math.abs(a.adds)).slice(0, 8);
    const row = ({i, j, adds}) => make('tr', {}, make('td', {}, place(i)), make('td', {}, j === undefined ? '' : place(j)), make('td', {class: `number ${adds > 0 ? 'for' : 'against'}`}, `${signed(adds)} ${adds > 0 ? 'for' : 'against'}`));
    $('pairs').tBodies[0].replaceChildren(...list.map(row));
  }

  let waiting = 0;
  function changed(now) { // the answer at once, what decided it in the next moment
    values = now;
    predict();
    clearTimeout(waiting);
    waiting = setTimeout(explainNow, 15);
  }

  // ---- examples: {greys, labels, answers}

  function examples({greys, labels, answers}, pad) {
    const m = page.inputs, buttons = labels.map((label, n) => {
      const grey = greys.subarray(n*m, (n + 1)*m), canvas = make('canvas', {width: image.width, height: image.height});
      drawGrey(canvas.getContext('2d'), grey, image.width, 1);
      const missed = label !== answers[n];
      const said = `${classes[label]}${missed ? `, which it takes for ${classes[answers[n]]}` : ''}`;
      const button = make('button', {type: 'button', class: missed ? 'missed' : null, title: said, 'aria-label': `Example: ${said}`, 'aria-pressed': false}, canvas);
      button.addEventListener('click', () => { pad.set(grey); choose(n); });
      return button;
    });
    const choose = n => buttons.forEach((b, i) => b.setAttribute('aria-pressed', i === n));
    $('examples').append(...buttons);
    return {choose, first: greys.subarray(0, m)};
  }

  function startImage() {
    let mine = null; // what an example put there, as long as it is there
    const pad = digitPad($('pad'), {...image, onchange: p => {
      const now = p.pixels();
      if (row && !(mine && now.every((v, i) => v === mine[i]))) row.choose(-1);
      changed(now);
    }});
    const set = pad.set;
    pad.set = grey => { mine = grey; set(grey); };
    const row = page.examples ? examples(page.examples, pad) : null;
    $('clear').addEventListener('click', () => pad.clear());
    for (const id of ['many', 'heat']) $(id).addEventListener('input', explainNow);
    if (row) { pad.set(row.first); row.choose(0); }
    changed(pad.pixels());
    return pad;
  }

  function startFields() {
    const inputs = names.map((name, i) => make('input', {type: 'number', step: 'any', value: page.start[i]}));
    $('fields').append(...names.map((name, i) => make('label', {}, make('span', {}, name), inputs[i])));
    const read = () => changed(Float64Array.from(inputs, e => e.valueAsNumber || 0));
    $('fields').addEventListener('input', read);
    $('fields').addEventListener('submit', e => e.preventDefault());
    read();
  }

  // ---- patterns: [{name, positive: [{value, pixels}...], negative: ...}...], pixels as signed bytes, drawn on the page's own ground

  function pattern({value, pixels}, name, sign) {
    const canvas = make('canvas', {width: image.width, height: image.height, role: 'img', 'aria-label': `Pattern that speaks ${sign} ${name}, strength ${signed(value)}`});
    const on = canvas.getContext('2d'), data = on.createImageData(image.width, image.height);
    pixels.forEach((v, i) => data.data.set([...(v > 0 ? [40, 125, 225] : [225, 120, 20]), Math.min(255, Math.abs(v)*2)], 4*i));
    on.putImageData(data, 0, 0);
    return make('div', {class: 'one'}, canvas, signed(value));
  }
  function patterns(all) {
    const row = (list, name, sign) => make('div', {class: 'row'}, make('span', {}, sign), ...list.map(p => pattern(p, name, sign)));
    $('patterns').append(...all.map(({name, positive, negative}) => make('figure', {}, make('figcaption', {}, name), row(positive, name, 'for'), row(negative, name, 'against'))));
  }

  const pad = image ? startImage() : startFields();
  if (page.patterns) patterns(page.patterns);
  $('whole').href = location.href.split('#')[0];
  window.lesson = {logits, probabilities, explain, pad, page};
})();
