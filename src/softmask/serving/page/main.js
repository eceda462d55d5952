// The page: what it opens on, which view is seen, one run at a time, and what is said of it.

const TOLD_EVERY = 2000;
const THEME = "softmask-theme";
const VIEW = "softmask-view";

class Page {
  constructor(data) {
    this.data = data;
    this.toldAt = 0;
    this.view = new View();
    this.listen();
    this.setTheme(recall("localStorage", THEME));
    if (data.mode === "live") this.startLive();
    else this.tryTo(() => this.open(data.trace));
  }

  startLive() {
    const { name, context, soft_mask: soft, chat, keyed } = this.data.model;
    const mixed = soft && `soft-masking k ${soft.k}, scale ${fixed(soft.scale)}`;
    const facts = [name, `context ${context}`, mixed].filter(Boolean);
    byId("model").textContent = facts.join(" \u00b7 ");
    document.title = `${name} - softmask`;
    byId("settings").hidden = byId("refills").hidden = byId("reference").hidden = false;
    byId("reference").href = "/docs"; // a file has no server
    byId("key").hidden = !keyed;
    byId("views").hidden = !chat;
    if (this.data.model.grows_holes) byId("hole-size").textContent = "that begins with";
    this.settings = new Settings(this.data);
    this.refill = new Refill(() => !this.view.isRunning);
    this.texts = new Texts(this);
    this.conversation = chat ? new Conversation(this) : null;
    byId("conversation-view").addEventListener("click", () => this.setView("conversation"));
    byId("text-view").addEventListener("click", () => this.setView("text"));
    addEventListener("hashchange", () => this.follow(location.hash));
    const kept = recall("sessionStorage", VIEW);
    this.setView(chat && kept !== "text" ? "conversation" : "text");
    if (this.follow(location.hash)) return;
    if (this.data.examples.length) this.texts.load(this.data.examples[0]);
    if (this.data.opening && !this.conversation?.turns.length) this.showOpening();
  }

  /** A recorded run that plays, where nobody minds that something moves. */
  showOpening() {
    const { trace, about } = this.data.opening;
    const sentence = this.data.examples.length
      ? `A recorded run of the ${this.data.examples[0].name}. Press Run to compute the text above here and now.`
      : `A recorded run of the small model that comes with softmask. ${about}`;
    this.view.show(readTrace(trace), sentence);
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isStill) this.view.timeline.scrub(2);
    else this.view.timeline.play(true);
  }

  follow(hash) {
    const isText = this.texts.openLink(hash);
    if (isText) this.setView("text");
    return isText;
  }

  setView(name) {
    const isText = name === "text";
    // An error stands where it was run: a composer is always in sight.
    if (isText) byId("settings").before(byId("alert"));
    else byId("composer").prepend(byId("alert"));
    byId("form").hidden = !isText;
    byId("conversation").hidden = isText;
    byId("runs").hidden = !isText;
    byId("text-view").ariaPressed = String(isText);
    byId("conversation-view").ariaPressed = String(!isText);
    keep("sessionStorage", VIEW, name);
  }

  // Runs: one at a time.

  /** Begins a run and waits for its end; returns what `act` threw, which is shown, or null. */
  async during(act) {
    performance.clearMarks();
    performance.mark("softmask-run");
    this.warn(null);
    this.abort = new AbortController();
    this.toldAt = performance.now();
    this.setRunning(true);
    const error = await act().then(() => null, (reason) => reason);
    this.abort.abort(); // Of a run that could not be drawn nothing more is wanted.
    this.setRunning(false);
    if (error && !isAbort(error)) this.warn(error);
    return error;
  }

  setRunning(isRunning) {
    this.view.isRunning = isRunning;
    document.body.classList.toggle("busy", isRunning);
    for (const name of ["run", "send"]) byId(name).hidden = isRunning;
    for (const name of ["stop", "stop-answer"]) byId(name).hidden = !isRunning;
    for (const name of ["text-view", "conversation-view", "clear"]) byId(name).disabled = isRunning;
  }

  get key() {
    return byId("key").lastElementChild.value;
  }

  // What is said.

  tellProgress(run) {
    const now = performance.now();
    const last = run?.steps.at(-1);
    if (!last || now - this.toldAt < TOLD_EVERY) return;
    this.toldAt = now;
    this.say(`step ${last.step} of ${last.steps}, ${plural(last.left, "mask")} left`);
  }

  say(text) {
    byId("status").textContent = text;
  }

  /** One error, in place of the one before; null: none. */
  warn(error) {
    const alert = byId("alert");
    alert.replaceChildren();
    if (!error) return;
    const { message, advice } = error instanceof Refusal ? error : Refusal.own(error);
    const fault = element("strong", "", `${message.replace(/\.$/, "")}.`);
    alert.append(fault, ` ${advice}`);
    if (error.status === 401) byId("key").hidden = false;
    if (error.status === 400) this.settings.pointAt(error.message);
    // What was begun above and below it is taken back first.
    requestAnimationFrame(() => alert.scrollIntoView({ block: "nearest" }));
  }

  /** Shows why `act` refuses, where it does. */
  tryTo(act) {
    try {
      act();
    } catch (error) {
      this.warn(error instanceof SyntaxError ? new Refusal("This file is no JSON") : error);
    }
  }

  // Theme, and files of traces.

  listen() {
    // What is drawn frame by frame fails where nobody waits for it.
    addEventListener("error", ({ error }) => error && this.warn(error));
    addEventListener("unhandledrejection", ({ reason }) => this.warn(reason));
    byId("theme").addEventListener("click", () => {
      this.setTheme(isDark() ? "light" : "dark");
      keep("localStorage", THEME, document.documentElement.dataset.theme);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.setTheme());
    byId("open").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", ({ target }) => {
      if (target.files.length) this.openFile(target.files[0]);
      target.value = "";
    });
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

  setTheme(theme) {
    if (theme) document.documentElement.dataset.theme = theme;
    byId("theme").textContent = isDark() ? "Light" : "Dark";
    this.view.recolour();
  }

  async openFile(file) {
    if (this.view.isRunning) return;
    const text = await file.text();
    this.tryTo(() => this.open(JSON.parse(text)));
  }

  open(trace) {
    const runs = readTrace(trace);
    this.warn(null);
    this.view.layout = runs.some(puzzleOf) ? "grid" : "prose";
    if (this.data.mode === "trace") byId("model").textContent = runs[0].start.model;
    this.view.show(runs);
  }
}

new Page(JSON.parse(byId("softmask-data").textContent));
