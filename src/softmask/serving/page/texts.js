// The text view: a text to go on from or with holes, run soft-masked and plain; and its link.

const HOLES = /\[\[\d+\]\]/;
// A link of somebody else's may run at once up to here: tokens, and steps.
const MOST_OF_LINK = 512;
const EARLIER = "Below is the run before: the last one brought nothing.";

class Texts {
  constructor(page) {
    this.page = page;
    const { model, examples } = page.data;
    this.model = model;
    byId("compare").checked = model.soft_mask !== null;
    byId("examples").hidden = !examples.length;
    for (const example of examples) {
      const button = element("button", "example", example.name);
      button.type = "button";
      button.addEventListener("click", () => this.load(example));
      byId("examples").append(button);
    }
    byId("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    byId("stop").addEventListener("click", () => page.abort.abort());
    const refill = (text, stretch, count) => this.refill(text, stretch, count);
    page.refill.watch(byId("text"), () => byId("text").value, refill);
    byId("share").addEventListener("click", () => this.share());
    byId("use").addEventListener("click", () => this.use());
    byId("text").addEventListener("input", () => this.write(byId("text").value));
    byId("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.run();
    });
  }

  load({ text, settings, about }) {
    this.write(text, about);
    this.page.settings.fill(settings);
  }

  async run() {
    const { view } = this.page;
    if (view.isRunning || !byId("text").value) return byId("text").focus();
    const before = { runs: view.runs, layout: view.layout, about: view.about };
    const error = await this.page.during(async () => {
      const bodies = this.requests();
      const isSoft = this.isSoft(bodies[0]);
      const names = isSoft ? ["soft-masked", "plain"] : ["plain"];
      view.layout = "grid";
      view.show(bodies.map((body, i) => this.expect(body, names[i])));
      const ends = await Promise.allSettled(bodies.map((body, i) => this.follow(body, i)));
      const errors = ends.map((end) => end.reason).filter((reason) => reason && !isAbort(reason));
      if (errors.length) throw errors[0];
    });
    this.finish(error, before);
  }

  follow(body, i) {
    const { page } = this;
    const panel = page.view.panels[i];
    return denoise(body, page.key, page.abort.signal, {
      start: (start) => page.view.replace(i, new Run(start)),
      step: (step) => {
        panel.run.add(step);
        page.view.advance();
        page.tellProgress(page.view.runs[0]);
      },
      end: (end) => {
        panel.run.end = end;
        page.view.advance();
      },
    });
  }

  /** `before`: what to go back to where nothing began. */
  finish(error, before) {
    const { view } = this.page;
    const begun = view.runs.filter((run) => run.start.id && !before.runs.includes(run));
    for (const run of begun) if (!run.end) run.close(error?.ending ?? "cancelled");
    if (!begun.length) {
      view.layout = before.layout;
      view.show(before.runs, before.about || EARLIER);
    } else if (begun.length < view.panels.length) view.show(begun);
    else view.settle();
    if (begun.length) byId("use").hidden = false;
    for (const panel of view.panels) this.watch(panel);
    this.page.say(begun.map((run) => `${run.name}: ${run.end.text}`).join("\n"));
  }

  /** The bodies to post: soft-masked, and plain of the same seed where that is wanted. */
  requests() {
    const { settings } = this.page;
    settings.check();
    const asked = this.ask(byId("text").value);
    const holes = asked.infill ? partsOf(asked.infill).filter((_, i) => i % 2) : [];
    if (holes.some((size) => Number(size) < 1)) {
      throw new Refusal("A hole has at least one token", "Write [[1]] or more, and run again.");
    }
    const body = { ...asked, ...settings.body(Boolean(asked.infill)) };
    this.seed = body.seed;
    if (!this.isSoft(body) || !byId("compare").checked) return [body];
    return [body, { ...body, softmask: { ...body.softmask, soft_mask: null } }];
  }

  /** Whether a body is decoded with feedback. */
  isSoft({ softmask }) {
    return Boolean("soft_mask" in softmask ? softmask.soft_mask : this.model.soft_mask);
  }

  ask(text) {
    if (!HOLES.test(text)) return { prompt: text };
    // What is pasted often has lost its last line end, and a model answers what it was trained on.
    const isOfLines = this.page.settings.startOf(text)?.endsWith("\n");
    return { infill: isOfLines && !text.endsWith("\n") ? `${text}\n` : text };
  }

  /** A stand-in for the canvas that is about to come, so that its place is kept. */
  expect(body, name) {
    const token = (text) => ({ id: -1, text, masked: text === "" });
    const given = (text) => (text.match(/\d|\n|[^\d\n]+/g) ?? []).map(token);
    const masks = (count) => Array(Math.min(count, this.model.context)).fill("").map(token);
    const count = body.max_tokens ?? this.page.settings.defaults.get("max_tokens");
    const parts = partsOf(body.infill) ?? [body.prompt, count];
    const tokens = parts.flatMap((part, i) => (i % 2 ? masks(part) : given(part)));
    return new Run({ name, tokens, infill: Boolean(body.infill), settings: {} });
  }

  /** What a run wrote can be refilled where it stands: its last lines are what is shown there. */
  watch({ run, outcome }) {
    const act = (shown, { from, to }, count) => {
      const text = textOf(run);
      const before = text.length - shown.length;
      const stretch = { from: before + from, to: before + to };
      if (withHole(this.page, text, stretch, count) !== null) this.refill(text, stretch, count);
    };
    this.page.refill.watch(outcome, () => outcome.textContent, act);
  }

  /** The first run's whole text as the one to work on. */
  use() {
    this.write(textOf(this.page.view.runs[0]));
    byId("text").focus();
    byId("text").setSelectionRange(0, 0);
  }

  /** Runs the text with a hole in place of a stretch of it. */
  refill(text, { from, to }, count) {
    this.write(`${text.slice(0, from)}[[${count}]]${text.slice(to)}`);
    return this.run().then(() => byId("use").focus());
  }

  write(text, about = "") {
    if (byId("text").value !== text) byId("text").value = text;
    byId("about-example").textContent = about;
    this.page.settings.suit(text);
  }

  // The link: only what differs from the defaults, behind the #, which no server is sent.

  get link() {
    const values = new URLSearchParams({ text: byId("text").value });
    values.set("compare", Number(byId("compare").checked));
    for (const [name, value] of this.page.settings.changes()) values.set(name, value);
    if (this.seed !== undefined && !values.has("seed")) values.set("seed", this.seed);
    return `${location.href.split("#")[0]}#${values}`;
  }

  /** Takes over what a link says and runs it; returns whether it said anything. */
  openLink(hash) {
    const values = new URLSearchParams(hash.slice(1));
    if (!values.has("text") || this.page.view.isRunning) return false;
    const { text, compare, ...settings } = Object.fromEntries(values);
    this.write(text);
    byId("compare").checked = compare === "1";
    const ignored = this.page.settings.fill(settings);
    const holes = partsOf(text).filter((_, i) => i % 2).map(Number);
    const { max_tokens: tokens = 0, softmask } = this.page.settings.body(false);
    const most = Math.max(tokens, softmask.steps ?? 0, holes.reduce((a, b) => a + b, 0));
    const look = (fault) => this.page.warn(new Refusal(fault, "Look at it, and run it."));
    if (ignored.length) {
      look(`This link's ${ignored.join(", ")} is no setting here, or no value of it, and was ignored`);
    } else if (most > MOST_OF_LINK) {
      look(`This link asks for more than ${MOST_OF_LINK} tokens or steps`);
    } else if (!this.model.keyed) this.run();
    return true;
  }

  async share() {
    const { link } = this;
    history.replaceState(null, "", link);
    // A page that is not from this machine or over HTTPS has no clipboard.
    byId("share").textContent = (await copy(link)) ? "Copied" : "It is in the address bar";
    setTimeout(() => (byId("share").textContent = "Copy link"), 2000);
  }
}

/** What was given and what was written, as one text. */
const textOf = ({ start, slots, end }) =>
  start.infill ? end.text : promptOf({ start, slots }) + end.text;
