// Position by step as a heat map: one pixel a cell, written once when its step comes, then scaled.

class Strip {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.cells = document.createElement("canvas");
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  show(run) {
    this.run = run;
    this.last = null;
    this.canvas.style.height = `${Math.min(Math.max(run.slots.length * 6, 72), 168)}px`;
    this.recolour(this.scale);
    this.fit();
  }

  /** `scale`: { metric, most, colours }; everything is coloured anew. */
  recolour(scale) {
    this.scale = scale;
    if (!this.run || !scale) return;
    this.painted = { steps: 0, end: false };
    this.columns = this.run.total;
    this.cells.width = this.columns;
    this.cells.height = this.run.slots.length;
    this.image = new ImageData(this.cells.width, this.cells.height);
    this.pixels = new Int32Array(this.image.data.buffer);
    this.drawn = null;
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.round(clientWidth * devicePixelRatio);
    this.canvas.height = Math.round(clientHeight * devicePixelRatio);
    this.drawn = null;
    if (this.run && this.scale) this.draw(this.last?.step ?? 0, this.last?.position ?? null);
  }

  draw(step, position) {
    this.last = { step, position };
    const isOther = this.run.slots.length !== this.cells.height; // a hole has grown
    if (isOther || this.run.total !== this.columns) this.recolour(this.scale);
    const drawn = `${step} ${position} ${this.run.steps.length} ${this.run.end !== null}`;
    if (this.drawn === drawn) return;
    this.drawn = drawn;
    this.paintNew();
    const { width, height } = this.canvas;
    const { context } = this;
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.cells, 0, 0, width, height);
    context.fillStyle = getComputedStyle(this.canvas).color;
    const thick = Math.max(1, Math.round(devicePixelRatio));
    const column = Math.min((step / this.columns) * width, width - thick);
    context.fillRect(Math.round(column), 0, thick, height);
    const row = position === null ? -1 : this.run.slots.indexOf(position);
    if (row < 0) return;
    const tall = height / this.run.slots.length;
    context.fillRect(0, Math.floor(row * tall), width, 1);
    context.fillRect(0, Math.ceil((row + 1) * tall) - 1, width, 1);
  }

  paintNew() {
    const { run } = this;
    const { painted } = this;
    for (; painted.steps < run.steps.length; painted.steps++) {
      const from = painted.steps ? run.steps[painted.steps - 1].step : 0;
      this.paintEvent(painted.steps, from, run.steps[painted.steps].step);
    }
    // The last steps may have computed nothing and left no event.
    const last = run.steps.at(-1)?.step ?? 0;
    if (run.end && !painted.end) this.paintEvent(Infinity, last, this.columns);
    painted.end = run.end !== null;
    this.cells.getContext("2d").putImageData(this.image, 0, 0);
  }

  /** The columns of the steps that an event is about. */
  paintEvent(index, from, to) {
    this.run.slots.forEach((position, row) => {
      const colour = this.colourOf(index, position);
      const start = row * this.columns;
      this.pixels.fill(colour, start + from, start + Math.min(to, this.columns));
    });
  }

  colourOf(index, position) {
    const { metric, most, colours } = this.scale;
    const state = this.run.stateAt(index, position);
    if (state === "gone") return 0; // transparent
    if (state !== "masked") return colours[state];
    const value = valueOf(this.run, index, position, metric);
    if (!Number.isFinite(value)) return colours.unread;
    return colours.ramp[Math.min(Math.round((value / most) * (LEVELS - 1)), LEVELS - 1)];
  }

  /** The step and the position under a pointer. */
  at(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const within = (part, count) => Math.min(Math.max(Math.floor(part * count), 0), count - 1);
    return {
      step: within((event.clientX - left) / width, this.columns) + 1,
      position: this.run.slots[within((event.clientY - top) / height, this.run.slots.length)],
    };
  }
}

function valueOf(run, index, position, metric) {
  const row = run.rows[index]?.[position] ?? -1;
  if (row < 0) return NaN;
  const { lambda, entropy, p } = run.steps[index].masked;
  if (metric === "confidence") return p[row][0] ?? NaN;
  const value = (metric === "lambda" ? lambda : entropy)[row];
  return value === null ? NaN : value;
}

/** The largest entropy of the runs as the end of the scale; the others are shares. */
function largest(runs, metric) {
  if (metric !== "entropy") return 1;
  let most = 1;
  for (const step of runs.flatMap((run) => run.steps)) {
    most = Math.max(most, ...step.masked.entropy);
  }
  return Math.ceil(most);
}
