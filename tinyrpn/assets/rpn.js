// A Reconciled Polynomial Network in plain JavaScript, from the numbers that tinyrpn wrote.
//
// rpn(model) returns
//   forward(x)              {outputs, trace}; x holds the m numbers of a sample, as the first layer takes them
//   explain(x, unit, base)  of which parts an output is the sum, where the sample `base` counts as nothing
//
// A layer fuses its heads. A head computes r(x) (<kappa(x), psi(w)> - mean(x) mass) + shift + pi(x), then its output functions.
// kappa(x) is u (x) x, row after row, with u = [1] (degree 1) or u = [1, x] (degree 2). psi(w) is a sum of terms, none of
// which is built: (P Q) (x) (S T), a Kronecker product with None for 1, or squares, eigenvalues with their eigenvectors.
// r(x) = 1/sqrt(var + eps) and mean(x) are those of a LayerNorm, from the sums of x and of its squares alone.

// ---- small linear algebra: a matrix is {rows, columns, data}

const matrix = (rows, columns, data = new Float64Array(rows*columns)) => ({rows, columns, data});

function dot(a, at, b, from, length) {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[at + i]*b[from + i];
  return sum;
}

function times(A, B) { // A B
  const out = matrix(A.rows, B.columns);
  for (let i = 0; i < A.rows; i++) for (let k = 0; k < A.columns; k++) {
    const a = A.data[i*A.columns + k];
    if (a) for (let j = 0; j < B.columns; j++) out.data[i*B.columns + j] += a*B.data[k*B.columns + j];
  }
  return out;
}

function transposed(A) {
  const out = matrix(A.columns, A.rows);
  for (let i = 0; i < A.rows; i++) for (let j = 0; j < A.columns; j++) out.data[j*A.rows + i] = A.data[i*A.columns + j];
  return out;
}

// ---- kappa(x)

// Calls use(factor, j, length, k) for runs of the range start..stop: kappa[k..] = factor * x[j..], `length` numbers long
function runs(x, start, stop, use) {
  const m = x.length;
  for (let k = start; k < stop;) {
    const a = Math.floor(k/m), j = k - a*m, length = Math.min(m - j, stop - k);
    use(a ? x[a - 1] : 1, j, length, k);
    k += length;
  }
}

// Mean and 1/std of kappa(x), and what their gradients need; without a LayerNorm they change nothing
function moments(head, x) {
  if (!head.norm) return {mean: 0, scale: 1};
  let s = 0, q = 0;
  for (const v of x) { s += v; q += v*v; }
  const two = head.degree === 2;
  const mean = (two ? s + s*s : s)/head.D, square = (two ? q + q*q : q)/head.D;
  const spread = Math.max(square - mean*mean, 0);
  return {mean, scale: 1/Math.sqrt(spread + head.norm.eps), slope: (two ? 1 + 2*s : 1)/head.D, bend: (two ? 2 + 4*q : 2)/head.D, flat: spread === 0};
}

// ---- psi(w), a term at a time

// <kappa(x), psi(w)> of a Kronecker term: R = Q K T' for K = kappa(x) as rows of T.columns numbers, then P R S'
function contractKronecker({P, Q, S, T}, x, gain) {
  let R = matrix(Q.rows, T.rows);
  const c = T.columns, y = new Float64Array(T.rows), scaled = gain && new Float64Array(x.length);
  for (let i = 0; i < Q.columns; i++) {
    y.fill(0);
    runs(x, i*c, (i + 1)*c, (factor, j, length, k) => {
      if (gain) for (let l = 0; l < length; l++) scaled[j + l] = x[j + l]*gain[k + l];
      for (let t = 0; t < T.rows; t++) y[t] += factor*dot(T.data, t*c + k - i*c, gain ? scaled : x, j, length);
    });
    for (let a = 0; a < Q.rows; a++) for (let t = 0; t < T.rows; t++) R.data[a*T.rows + t] += Q.data[a*Q.columns + i]*y[t];
  }
  if (S) R = times(R, transposed(S));
  return (P ? times(P, R) : R).data;
}

// sum_j g_j psi(w)_j, added to row: Q' (P' G S) T, and never a matrix of all outputs
function addKronecker({P, Q, S, T}, g, row) {
  const p = (P || Q).rows;
  let G = matrix(p, g.length/p, g);
  if (P) G = times(transposed(P), G);
  if (S) G = times(G, S);
  const E = times(G, T), c = E.columns;
  for (let a = 0; a < Q.rows; a++) for (let i = 0; i < Q.columns; i++) {
    const q = Q.data[a*Q.columns + i];
    if (q) for (let l = 0; l < c; l++) row[i*c + l] += q*E.data[a*c + l];
  }
}

// The same two for eigenvalues and eigenvectors of each output, and a linear form
function contractSquares({values, vectors, linear}, x) {
  const m = x.length;
  return Float64Array.from({length: linear.rows}, (_, j) => {
    let sum = dot(linear.data, j*m, x, 0, m);
    for (let i = j*values.columns; i < (j + 1)*values.columns; i++) sum += values.data[i]*dot(vectors.data, i*m, x, 0, m)**2;
    return sum;
  });
}

function addSquares({values, vectors, linear}, g, row) {
  const m = linear.columns, r = values.columns, v = vectors.data;
  for (let j = 0; j < g.length; j++) if (g[j]) {
    for (let l = 0; l < m; l++) row[l] += g[j]*linear.data[j*m + l];
    for (let i = j*r; i < (j + 1)*r; i++) for (let a = 0; a < m; a++) {
      const f = g[j]*values.data[i]*v[i*m + a];
      for (let l = 0; l < m; l++) row[m + a*m + l] += f*v[i*m + l];
    }
  }
}

const contractTerm = (term, x, gain) => term.vectors ? contractSquares(term, x) : contractKronecker(term, x, gain);

// The weights of sum_j g_j (output j), as the LayerNorm's gain leaves them
function weightsOf(head, g) {
  const row = new Float64Array(head.D);
  for (const term of head.terms) (term.vectors ? addSquares : addKronecker)(term, g, row);
  if (head.norm?.gain) for (let k = 0; k < head.D; k++) row[k] *= head.norm.gain.data[k];
  return row;
}

// ---- functions after a head: [value(z), derivative(z, value)] number by number, or forward and backward of all together

const EACH = {
  relu: [z => Math.max(z, 0), z => z > 0 ? 1 : 0],
  leaky_relu: [(z, f) => z > 0 ? z : f.slope*z, (z, y, f) => z > 0 ? 1 : f.slope],
  elu: [(z, f) => z > 0 ? z : f.alpha*Math.expm1(z), (z, y, f) => z > 0 ? 1 : y + f.alpha],
  sigmoid: [z => 1/(1 + Math.exp(-z)), (z, y) => y*(1 - y)],
  tanh: [Math.tanh, (z, y) => 1 - y*y],
  silu: [z => z/(1 + Math.exp(-z)), (z, y) => { const s = 1/(1 + Math.exp(-z)); return s + y*(1 - s); }],
  softplus: [z => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))), z => 1/(1 + Math.exp(-z))],
  softsign: [z => z/(1 + Math.abs(z)), z => (1 + Math.abs(z))**-2],
};
const ALL = {
  softmax: [z => softmax(z), (g, z, y) => { const mean = dot(g, 0, y, 0, g.length); return y.map((v, i) => v*(g[i] - mean)); }],
  log_softmax: [z => { const most = Math.max(...z), rest = Math.log(z.reduce((sum, v) => sum + Math.exp(v - most), 0)); return z.map(v => v - most - rest); }, (g, z, y) => { const sum = g.reduce((a, b) => a + b); return y.map((v, i) => g[i] - Math.exp(v)*sum); }],
  layer_norm: [normalise, normaliseBack],
};

function softmax(z) {
  const most = Math.max(...z), e = z.map(v => Math.exp(v - most)), sum = e.reduce((a, b) => a + b);
  return e.map(v => v/sum);
}
function standard(z, eps) {
  const mean = z.reduce((a, b) => a + b)/z.length, scale = 1/Math.sqrt(z.reduce((a, b) => a + (b - mean)**2, 0)/z.length + eps);
  return {scale, y: z.map(v => (v - mean)*scale)};
}
function normalise(z, f) {
  return standard(z, f.eps).y.map((v, i) => v*(f.gain ? f.gain.data[i] : 1) + (f.shift ? f.shift.data[i] : 0));
}
function normaliseBack(g, z, _, f) {
  const {scale, y} = standard(z, f.eps), h = f.gain ? g.map((v, i) => v*f.gain.data[i]) : g, n = z.length;
  const mean = h.reduce((a, b) => a + b)/n, along = dot(h, 0, y, 0, n)/n;
  return h.map((v, i) => scale*(v - mean - y[i]*along));
}

const apply = (f, z) => ALL[f.name] ? ALL[f.name][0](z, f) : z.map(v => EACH[f.name][0](v, f));
const applyBack = (f, g, z, y) => ALL[f.name] ? ALL[f.name][1](g, z, y, f) : g.map((v, i) => v*EACH[f.name][1](z[i], y[i], f));

// ---- a head: forward, and the gradient of sum_j g_j (output j before the output functions) with respect to x

function forwardHead(head, x) {
  const at = moments(head, x), z = Float64Array.from(head.shift);
  for (const term of head.terms) contractTerm(term, x, head.norm?.gain?.data).forEach((v, j) => { z[j] += at.scale*v; });
  if (head.norm) head.mass.forEach((v, j) => { z[j] -= at.scale*at.mean*v; });
  if (head.remainder === 'identity') x.forEach((v, j) => { z[j] += v; });
  if (head.linear) for (let j = 0; j < head.n; j++) z[j] += dot(head.linear.data, j*head.m, x, 0, head.m);
  const steps = [z];
  for (const f of head.output) steps.push(apply(f, steps.at(-1)));
  return {at, steps, y: steps.at(-1)};
}

function backOutput(head, g, {steps}) {
  for (let i = head.output.length - 1; i >= 0; i--) g = applyBack(head.output[i], g, steps[i], steps[i + 1]);
  return g;
}

const massOf = (head, g) => head.norm ? dot(head.mass, 0, g, 0, head.n) : 0;
function afterOf(head, g) { // what the remainder's gradient is
  return head.remainder === 'identity' ? g : head.linear ? times(matrix(1, head.n, g), head.linear).data : new Float64Array(head.m);
}

function backHead(head, g, x, {at}) {
  const row = weightsOf(head, g), mass = massOf(head, g), out = Float64Array.from(afterOf(head, g)), m = head.m;
  let value = -at.mean*mass;
  runs(x, 0, head.D, (factor, j, length, k) => {
    const part = dot(row, k, x, j, length), a = Math.floor(k/m);
    value += factor*part;
    if (a) out[a - 1] += at.scale*part;                                       // kappa = u (x) x: once by u,
    for (let l = 0; l < length; l++) out[j + l] += at.scale*factor*row[k + l]; // once by x
  });
  if (!head.norm) return out;
  const bend = at.flat ? 0 : value*at.scale**3;
  for (let i = 0; i < m; i++) out[i] -= at.scale*mass*at.slope + bend*(at.bend*x[i]/2 - at.mean*at.slope);
  return out;
}

// ---- a layer: heads side by side, and their fusion

function fuse(fusion, ys) {
  if (fusion.weights) return ys[0].map((_, j) => ys.reduce((sum, y, i) => sum + fusion.weights[i]*y[j], 0));
  const all = Float64Array.from(ys.flatMap(y => [...y]));
  return fusion.matrix ? times(fusion.matrix, matrix(all.length, 1, all)).data : all;
}

function fuseBack(fusion, g, heads) { // the gradient for each head
  if (fusion.weights) return heads.map((_, i) => g.map(v => v*fusion.weights[i]));
  const all = fusion.matrix ? times(matrix(1, g.length, g), fusion.matrix).data : g;
  let start = 0;
  return heads.map(h => all.slice(start, start += h.n));
}

function forwardLayer(layer, x) {
  const heads = layer.heads.map(h => forwardHead(h, x));
  return {x, heads, y: fuse(layer.fusion, heads.map(h => h.y))};
}

// ---- of which parts a weighted sum of a head's outputs is the sum; what `explain` of tinyrpn computes

// Adds to parts.pairs (entry i*m + j, i < j), parts.alone (each pixel by itself) and parts.constant
function addParts(parts, head, g, x, base, {at}) {
  const m = head.m, row = weightsOf(head, g), rest = massOf(head, g)/head.D, after = afterOf(head, g);
  const two = head.degree === 2, d = x.map((v, i) => v - base[i]), lit = [...d.keys()].filter(i => d[i]);
  const entry = (i, j) => (row[m + i*m + j] + row[m + j*m + i])/2 - rest;     // A, centred
  const onBase = new Float64Array(m);                                           // A base
  if (two) for (let i = 0; i < m; i++) for (let j = 0; j < m; j++) onBase[i] += entry(i, j)*base[j];
  parts.constant += dot(head.shift, 0, g, 0, head.n);
  for (let i = 0; i < m; i++) {
    const b = row[i] - rest;
    parts.constant += (at.scale*(onBase[i] + b) + after[i])*base[i];
    parts.alone[i] += (at.scale*(b + 2*onBase[i]) + after[i])*d[i];
  }
  if (two) lit.forEach((i, k) => {
    parts.alone[i] += at.scale*entry(i, i)*d[i]*d[i];                         // a pixel with itself
    for (let l = k + 1; l < lit.length; l++) parts.pairs[i*m + lit[l]] += 2*at.scale*entry(i, lit[l])*d[i]*d[lit[l]];
  });
}

// The k pairs that add or take away most: [{i, j, adds}], the strongest first
function strongest(pairs, m, k) {
  const best = [];
  for (let at = 0, least = 0; at < pairs.length; at++) {
    const size = Math.abs(pairs[at]);
    if (!(size > least)) continue;
    let place = best.length;
    while (place && Math.abs(best[place - 1].adds) < size) place--;
    best.splice(place, 0, {i: Math.floor(at/m), j: at % m, adds: pairs[at]});
    if (best.length > k) best.pop();
    if (best.length === k) least = Math.abs(best[k - 1].adds);
  }
  return best;
}

function rpn({layers}) {
  function forward(x) {
    const trace = [];
    for (const layer of layers) trace.push(forwardLayer(layer, trace.length ? trace.at(-1).y : Float64Array.from(x)));
    return {outputs: trace.at(-1).y, trace};
  }
  // The gradient of an output with respect to each unit of the first layer: for each head, before its output functions
  function firstUnits(trace, unit) {
    let g = new Float64Array(layers.at(-1).n);
    g[unit] = 1;
    for (let i = layers.length - 1; ; i--) {
      const {heads, fusion} = layers[i], seen = trace[i];
      const each = fuseBack(fusion, g, heads).map((part, h) => backOutput(heads[h], part, seen.heads[h]));
      if (!i) return each;
      g = new Float64Array(layers[i].m);
      heads.forEach((head, h) => backHead(head, each[h], seen.x, seen.heads[h]).forEach((v, k) => { g[k] += v; }));
    }
  }
  function explain(x, unit, base) {
    const {outputs, trace} = forward(x), each = firstUnits(trace, unit), {heads, m} = layers[0], seen = trace[0];
    const parts = {pairs: new Float64Array(m*m), alone: new Float64Array(m), constant: 0};
    heads.forEach((head, h) => addParts(parts, head, each[h], seen.x, base, seen.heads[h]));
    const sum = a => a.reduce((s, v) => s + v, 0), sums = {pairs: sum(parts.pairs), alone: sum(parts.alone), constant: parts.constant};
    return {...parts, sums, total: sums.pairs + sums.alone + sums.constant, output: outputs[unit], gradients: each, strongest: k => strongest(parts.pairs, m, k)};
  }
  return {forward, explain};
}
