// A pad to draw a digit on, with a mouse, a finger, a pen or the keyboard.
//
// digitPad(host, {height, width, onchange}) puts it into the element `host` and returns
//   pixels()     what a model sees: height*width grey values from 0 (paper) to 255 (ink), row by row
//   set(grey)    show these grey values as they are, for example a digit of the test set
//   clear()      an empty pad
//   destroy()    take it out again
// onchange(pad) is called after each change, at most once a frame.
//
// What is drawn by hand is cropped to its ink, fitted into 20/28 of the frame and put with its centre of mass in the
// middle, as the digits of MNIST were made. What comes through set() stays as it is.
function digitPad(host, {height = 28, width = 28, onchange = () => {}} = {}) {
  const S = 10, W = width*S, H = height*S;             // points of the canvas for each pixel
  const pen = 0.8*S*Math.min(height, width)/10;        // thickness of the stroke
  const shown = Object.assign(document.createElement('canvas'), {width: W, height: H, tabIndex: 0, className: 'pad'});
  const ink = Object.assign(document.createElement('canvas'), {width: W, height: H});
  const help = 'Digit pad. Draw with a mouse or a finger. By keyboard: arrow keys move the pen, space puts it down or lifts it, Delete clears.';
  shown.setAttribute('role', 'application'); shown.setAttribute('aria-label', help); shown.title = help;
  shown.style.cssText = 'touch-action:none; cursor:crosshair; background:#000; border-radius:6px; display:block; max-width:100%';
  const on = shown.getContext('2d'), to = ink.getContext('2d', {willReadFrequently: true});
  let given = null, last = null, drawing = false, frame = 0;
  const cursor = {x: W/2, y: H/2, down: false, seen: false};

  function changed() { show(); if (!frame) frame = requestAnimationFrame(() => { frame = 0; onchange(pad); }); }
  function show() {
    on.clearRect(0, 0, W, H);
    if (given) drawGrey(on, given, width, S); else on.drawImage(ink, 0, 0);
    if (cursor.seen) {
      on.strokeStyle = cursor.down ? '#e45756' : '#72b7b2'; on.lineWidth = 2;
      on.beginPath(); on.arc(cursor.x, cursor.y, pen/2 + 2, 0, 7); on.stroke();
    }
  }
  function stroke(x, y) {
    if (given) { given = null; to.clearRect(0, 0, W, H); }
    to.strokeStyle = to.fillStyle = '#fff'; to.lineWidth = pen; to.lineCap = to.lineJoin = 'round';
    to.beginPath(); to.moveTo(...(last || [x, y])); to.lineTo(x, y + (last ? 0 : 0.01)); to.stroke();
    last = [x, y]; changed();
  }
  function averages(canvas) {                          // the mean of each pixel's S x S points
    const a = canvas.getContext('2d').getImageData(0, 0, W, H).data, out = new Uint8Array(height*width);
    for (let r = 0; r < height; r++) for (let c = 0; c < width; c++) {
      let sum = 0;
      for (let y = r*S; y < (r + 1)*S; y++) for (let x = c*S; x < (c + 1)*S; x++) sum += a[4*(y*W + x) + 3];
      out[r*width + c] = Math.round(sum/(S*S));
    }
    return out;
  }
  function fitted() {                                  // the ink, cropped, fitted and centred
    const a = to.getImageData(0, 0, W, H).data;
    let left = W, right = -1, top = H, bottom = -1, mass = 0, mx = 0, my = 0;
    for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
      const v = a[4*(y*W + x) + 3];
      if (v < 51) continue;
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
      mass += v; mx += v*(x + 0.5); my += v*(y + 0.5);
    }
    const made = Object.assign(document.createElement('canvas'), {width: W, height: H});
    if (right < 0) return made;
    const w = right - left + 1, h = bottom - top + 1, scale = 20/28*Math.min(W, H)/Math.max(w, h);
    const inside = (v, size, room) => Math.min(Math.max(v, 0), room - size);
    const x = inside(W/2 - (mx/mass - left)*scale, w*scale, W), y = inside(H/2 - (my/mass - top)*scale, h*scale, H);
    const c = made.getContext('2d', {willReadFrequently: true}); c.imageSmoothingQuality = 'high';
    c.drawImage(ink, left, top, w, h, x, y, w*scale, h*scale);
    return made;
  }
  function place(e) { const box = shown.getBoundingClientRect(); return [(e.clientX - box.left)*W/box.width, (e.clientY - box.top)*H/box.height]; }
  function key(e) {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[e.key];
    if (!step && ![' ', 'Delete', 'Backspace'].includes(e.key)) return;
    e.preventDefault(); e.stopPropagation();           // a notebook has uses of its own for these keys
    cursor.seen = true;
    if (e.key === 'Delete' || e.key === 'Backspace') { cursor.down = false; pad.clear(); return; }
    if (e.key === ' ') { cursor.down = !cursor.down; last = null; }
    if (step) { cursor.x = Math.min(Math.max(cursor.x + step[0]*S, 0), W); cursor.y = Math.min(Math.max(cursor.y + step[1]*S, 0), H); }
    if (cursor.down) stroke(cursor.x, cursor.y); else show();
  }
  const listeners = {
    pointerdown(e) { if (e.button) return; shown.setPointerCapture(e.pointerId); shown.focus({preventScroll: true}); cursor.seen = false; drawing = true; last = null; stroke(...place(e)); e.preventDefault(); },
    pointermove(e) { if (drawing) for (const p of (e.getCoalescedEvents?.().length ? e.getCoalescedEvents() : [e])) stroke(...place(p)); },
    pointerup() { drawing = false; last = null; }, pointercancel() { drawing = false; last = null; },
    keydown: key, blur() { cursor.seen = false; show(); }, focus() { if (shown.matches(':focus-visible')) { cursor.seen = true; show(); } },
  };
  for (const [name, f] of Object.entries(listeners)) shown.addEventListener(name, f);
  host.append(shown);
  const pad = {
    canvas: shown,
    pixels: () => given ? Uint8Array.from(given) : averages(fitted()),
    set(a) {
      if (a.length !== height*width) throw new RangeError(`${a.length} grey values: ${height*width} are needed`);
      given = Uint8Array.from(a); last = null; changed();
    },
    clear() { given = null; last = null; to.clearRect(0, 0, W, H); changed(); },
    destroy() { cancelAnimationFrame(frame); shown.remove(); },
  };
  show();
  return pad;
}

function drawGrey(on, grey, width, size, strength = 1) { // a square of `size` points for each pixel that is not black
  grey.forEach((v, i) => {
    if (!v) return;
    const g = Math.round(v*strength);
    on.fillStyle = `rgb(${g},${g},${g})`;
    on.fillRect(i % width*size, Math.floor(i/width)*size, size, size);
  });
}
