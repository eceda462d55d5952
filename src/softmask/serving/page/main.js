// The page: runs, panels, and everything that changes what they show.

const TOLD_EVERY = 2000;

class Page {
  constructor(data) {
    this.data = data;
    this.panels = [];
    this.layout = "cells";
    this.chosen = null;
    this.isRunning = false;
    this.toldAt = 0;
    this.popover = new Popover(byId("popover"));
    this.timeline = new Timeline(() => this.redraw());
    this.listen();
    this.setTheme(remembered());
    if (data.mode === "live") this.startLive();
    else this.tryTo(() => this.open(data.trace));
  }

  startLive() {
    const { name, context, soft_mask: soft } = this.data.model;
    const mixed = soft && `soft-masking k ${soft.k}, scale ${fixed(soft.scale)}`;
    const facts = [name, `context ${context}`, mixed].filter(Boolean);
    byId("model").textContent = facts.join(" \u00b7 ");
    document.title = `${name} - softmask`;
    byId("form").hidden = byId("runs").hidden = false;
    this.controls = new Controls(this.data);
    if (!this.controls.follow(location.hash) && this.data.examples.length) {
      this.controls.load(this.data.examples[0]);
    }
    byId("form").addEventListener("submit", (event) => this.submit(event));
    byId("stop").addEventListener("click", () => this.abort.abort());
    byId("share").addEventListener("click", () => this.share());
    addEventListener("hashchange", () => this.controls.follow(location.hash));
    byId("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
    });
  }

  // Runs.

  async submit(event) {
    event.preventDefault();
    if (this.isRunning || !this.controls.check()) return;
    performance.clearMarks();
    performance.mark("softmask-run");
    this.warn(null);
    const bodies = this.controls.requests();
    const isSoft = bodies.length > 1 || this.data.model.soft_mask;
    const names = isSoft ? ["soft-masked", "plain"] : ["plain"];
    const before = { runs: this.runs, layout: this.layout };
    this.layout = "cells";
    this.isRunning = true;
    this.abort = new AbortController();
    this.show(bodies.map((body, i) => this.controls.expect(body, names[i])));
    const ends = await Promise.allSettled(bodies.map((body, i) => this.follow(body, i)));
    const errors = ends.map((end) => end.reason).filter((error) => error && !isAbort(error));
    this.finish(errors[0], before);
  }

  follow(body, i) {
    const panel = this.panels[i];
    return denoise(body, byId("key").lastElementChild.value, this.abort.signal, {
      start: (start) => {
        panel.show(new Run(start), this.layout, this.scale);
        this.draw();
      },
      step: (step) => {
        panel.run.add(step);
        this.advance();
      },
      end: (end) => {
        panel.run.end = end;
        this.advance();
      },
    });
  }

  advance() {
    const most = (name) => Math.max(...this.runs.map((run) => run[name]));
    this.timeline.show(most("total"), most("reached"), this.isRunning);
    this.tellProgress();
    this.redraw();
  }

  /** `before`: what to go back to where nothing began. */
  finish(error, before) {
    this.isRunning = false;
    const begun = this.runs.filter((run) => run.start.id);
    for (const run of begun) if (!run.end) run.close(error?.ending ?? "cancelled");
    if (error) this.warn(error);
    if (!begun.length) this.layout = before.layout;
    if (begun.length < this.panels.length) this.show(begun.length ? begun : before.runs);
    this.settle();
    this.say(begun.map((run) => `${run.name}: ${run.end.text}`).join("\n"));
  }

  get runs() {
    return this.panels.map((panel) => panel.run);
  }

  // What is seen.

  show(runs) {
    this.popover.hide();
    this.chosen = null;
    this.panels = runs.map(() => new Panel());
    byId("panels").replaceChildren(...this.panels.map((panel) => panel.root));
    byId("panels").classList.toggle("pair", runs.length > 1);
    byId("view").hidden = !runs.length;
    if (!runs.length) return;
    this.rescale(runs);
    this.panels.forEach((panel, i) => panel.show(runs[i], this.layout, this.scale));
    this.timeline.follows = true;
    this.toldAt = performance.now();
    this.settle();
  }

  /** Brings buttons, texts and the slider up to what there is. */
  settle() {
    byId("run").hidden = this.isRunning;
    byId("stop").hidden = !this.isRunning;
    for (const name of ["json", "png", "prose"]) byId(name).disabled = this.isRunning;
    if (!this.panels.length) return;
    if (!this.isRunning) {
      tellDifference(this.panels);
      if (byId("metric").value === "entropy") this.recolour();
    }
    this.setLayout(this.layout);
    this.advance();
  }

  /** Soon: once for all that happens within a frame. */
  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  /** Now: new elements are empty until they are drawn, and nothing may see them so. */
  draw() {
    for (const panel of this.panels) {
      const index = panel.draw(this.timeline.step, this.chosen, this.isRunning);
      this.popover.update(panel.run, index);
    }
    const isFirst = !performance.getEntriesByName("softmask-step").length;
    if (isFirst && this.runs.some((run) => run.steps.length)) performance.mark("softmask-step");
  }

  look(panel, position) {
    const { root } = panel.canvas.places[position];
    this.popover.show(root, panel.run, panel.run.indexAt(this.timeline.step), position);
    this.choose(position);
  }

  choose(position) {
    this.chosen = position;
    for (const panel of this.panels) panel.canvas.mark(position);
    this.redraw();
  }

  setLayout(layout) {
    this.layout = layout;
    for (const name of ["cells", "prose"]) byId(name).ariaPressed = String(name === layout);
    for (const panel of this.panels) {
      const isProse = layout === "prose" && panel.run.end !== null;
      if (panel.canvas.prose !== isProse) panel.canvas.show(panel.run, layout);
    }
    this.draw();
  }

  rescale(runs) {
    const metric = byId("metric").value;
    const colours = palette();
    this.scale = { metric, most: largest(runs, metric), colours };
    byId("high").textContent = metric === "entropy" ? `${this.scale.most} nats` : "1";
    const image = new ImageData(LEVELS, 1);
    new Int32Array(image.data.buffer).set(colours.ramp);
    byId("scale").getContext("2d").putImageData(image, 0, 0);
  }

  recolour() {
    this.rescale(this.runs);
    for (const panel of this.panels) panel.strip.recolour(this.scale);
    this.redraw();
  }

  setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    byId("theme").textContent = isDark() ? "Light" : "Dark";
    if (this.panels.length) this.recolour();
  }

  // What is said.

  tellProgress() {
    const now = performance.now();
    const last = this.runs[0]?.steps.at(-1);
    if (!this.isRunning || !last || now - this.toldAt < TOLD_EVERY) return;
    this.toldAt = now;
    this.say(`step ${last.step} of ${last.steps}, ${plural(last.left, "mask")} left`);
  }

  say(text) {
    byId("status").textContent = text;
  }

  warn(error) {
    const alert = byId("alert");
    alert.replaceChildren();
    if (!error) return;
    const message = element("strong", "", `${error.message.replace(/\.$/, "")}.`);
    alert.append(message, ` ${error.advice ?? ""}`);
    if (error.status === 401) byId("key").hidden = false;
  }

  // What people do.

  listen() {
    const onClick = (name, act) => byId(name).addEventListener("click", act);
    onClick("theme", () => {
      this.setTheme(isDark() ? "light" : "dark");
      remember(document.documentElement.dataset.theme);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.setTheme());
    byId("metric").addEventListener("change", () => this.recolour());
    for (const name of ["cells", "prose"]) onClick(name, () => this.setLayout(name));
    onClick("json", () => {
      const text = JSON.stringify(traceOf(this.runs));
      save(new Blob([text], { type: "application/json" }), "softmask-trace.json");
    });
    onClick("png", async () => save(await pictureOf(byId("panels")), "softmask.png"));
    onClick("open", () => byId("file").click());
    byId("file").addEventListener("change", ({ target }) => {
      if (target.files.length) this.openFile(target.files[0]);
      target.value = "";
    });
    this.listenForDrops();
    listenToTokens(this, byId("panels"));
    listenToStrips(this, byId("panels"));
  }

  listenForDrops() {
    const show = (isOver) => (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      byId("drop").hidden = !isOver;
    };
    addEventListener("dragover", show(true));
    addEventListener("dragleave", (event) => event.relatedTarget === null && show(false)(event));
    addEventListener("drop", (event) => {
      show(false)(event);
      const [file] = event.dataTransfer.files;
      if (file) this.openFile(file);
    });
  }

  async openFile(file) {
    if (this.isRunning) return;
    const text = await file.text();
    this.tryTo(() => this.open(JSON.parse(text)));
  }

  tryTo(act) {
    try {
      act();
    } catch (error) {
      this.warn(error instanceof SyntaxError ? new Error("This file is no JSON.") : error);
    }
  }

  open(trace) {
    const runs = readTrace(trace);
    this.warn(null);
    this.layout = "prose";
    if (this.data.mode === "trace") byId("model").textContent = runs[0].start.model;
    this.show(runs);
  }

  async share() {
    const { link } = this.controls;
    history.replaceState(null, "", link);
    // A page that is not from this machine or over HTTPS has no clipboard.
    const copying = navigator.clipboard?.writeText(link) ?? Promise.reject();
    const told = copying.then(() => "Copied", () => "It is in the address bar");
    byId("share").textContent = await told;
    setTimeout(() => (byId("share").textContent = "Copy link"), 2000);
  }
}

const isAbort = (error) => error.name === "AbortError";

// Storage can be forbidden, for a page from a file too.
function remembered() {
  try {
    return localStorage.getItem("softmask-theme");
  } catch {
    return null;
  }
}

function remember(theme) {
  try {
    localStorage.setItem("softmask-theme", theme);
  } catch {
    // It holds for this visit.
  }
}

new Page(JSON.parse(byId("softmask-data").textContent));
