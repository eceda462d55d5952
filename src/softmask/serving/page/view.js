// What is seen of runs: panels side by side, one timeline, and how they are looked at and kept.

class View {
  constructor() {
    this.panels = [];
    this.layout = "grid";
    this.isRunning = false;
    this.popover = new Popover(byId("popover"));
    this.timeline = new Timeline(() => this.redraw());
    byId("metric").addEventListener("change", () => this.recolour());
    for (const name of ["grid", "cells", "prose"]) {
      byId(name).addEventListener("click", () => this.setLayout(name));
    }
    byId("json").addEventListener("click", () => {
      const text = JSON.stringify(traceOf(this.runs));
      save(new Blob([text], { type: "application/json" }), "softmask-trace.json");
    });
    byId("png").addEventListener("click", async () => {
      save(await pictureOf(byId("panels")), "softmask.png");
    });
    listenToTokens(this, byId("panels"));
    listenToStrips(this, byId("panels"));
  }

  get runs() {
    return this.panels.map((panel) => panel.run);
  }

  /** `about`: a sentence above them. */
  show(runs, about = "") {
    this.popover.hide();
    this.timeline.pause();
    this.about = about;
    byId("about-run").textContent = about;
    byId("about-run").hidden = !about;
    this.panels = runs.map(() => new Panel());
    byId("panels").replaceChildren(...this.panels.map((panel) => panel.root));
    byId("panels").classList.toggle("pair", runs.length > 1);
    byId("view").hidden = !runs.length;
    if (!runs.length) return;
    this.rescale(runs);
    this.panels.forEach((panel, i) => panel.show(runs[i], this.layout, this.scale));
    byId("grid").hidden = !this.panels.some((panel) => panel.puzzle);
    this.timeline.follows = true;
    this.settle();
  }

  /** A run in place of a stand-in, now that its canvas is there. */
  replace(i, run) {
    this.panels[i].show(run, this.layout, this.scale);
    this.draw();
  }

  /** Brings buttons, texts and the slider up to what there is. */
  settle() {
    for (const name of ["json", "png", "prose"]) byId(name).disabled = this.isRunning;
    if (!this.panels.length) return;
    if (!this.isRunning) {
      tellDifference(this.panels);
      if (byId("metric").value === "entropy") this.recolour();
    }
    const differs = this.panels.some((panel) => panel.differs?.size);
    document.querySelector(".key .differs").hidden = !differs;
    this.setLayout(this.layout);
    this.advance();
  }

  advance() {
    const most = (name) => Math.max(...this.runs.map((run) => run[name]));
    this.timeline.show(most("total"), most("reached"), this.isRunning);
    this.redraw();
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
      const index = panel.draw(this.timeline.step, this.isRunning);
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
    for (const panel of this.panels) panel.choose(position);
    this.redraw();
  }

  setLayout(layout) {
    this.layout = layout;
    const isPuzzle = !byId("grid").hidden;
    const pressed = layout === "grid" && !isPuzzle ? "cells" : layout;
    for (const name of ["grid", "cells", "prose"]) {
      byId(name).ariaPressed = String(name === pressed);
    }
    for (const panel of this.panels) panel.setLayout(layout);
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
    if (!this.panels.length) return;
    this.rescale(this.runs);
    for (const panel of this.panels) panel.strip.recolour(this.scale);
    this.redraw();
  }
}
