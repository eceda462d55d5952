// A conversation with a model that has a chat template: asked, answered, edited, refilled. Kept in
// this tab, until it is cleared or the tab is closed.

const KEPT = "softmask-conversation";
const SAME = "the same as before: nothing is left to chance at temperature 0, or with this seed";

class Conversation {
  constructor(page) {
    this.page = page;
    this.turns = [];
    this.messages = [];
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(byId("say").value);
    });
    byId("say").addEventListener("keydown", (event) => {
      if (!isSending(event)) return;
      event.preventDefault();
      this.send(byId("say").value);
    });
    byId("stop-answer").addEventListener("click", () => page.abort.abort());
    byId("clear").addEventListener("click", () => this.clear());
    byId("system-text").addEventListener("input", () => this.keep());
    this.restore();
    this.show();
  }

  // What is kept.

  restore() {
    const kept = recall("sessionStorage", KEPT);
    const { system, turns } = kept ? JSON.parse(kept) : { system: "", turns: [] };
    byId("system-text").value = system;
    byId("system").open = Boolean(system);
    this.turns = turns;
  }

  keep() {
    const turns = this.turns.map(({ role, content, note }) => ({ role, content, note }));
    keep("sessionStorage", KEPT, JSON.stringify({ system: byId("system-text").value, turns }));
  }

  clear() {
    this.turns = [];
    this.page.warn(null);
    this.page.view.show([]);
    this.show();
    byId("say").focus();
  }

  // What is seen.

  show() {
    this.page.refill.hide();
    this.messages = this.turns.map((turn, i) => this.message(turn, i));
    byId("messages").replaceChildren(...this.messages.map((message) => message.root));
    this.turns.forEach((turn, i) => turn.role === "assistant" && this.watch(turn, i));
    byId("clear").hidden = !this.turns.length;
    this.keep();
  }

  message(turn, i) {
    const isUser = turn.role === "user";
    const isLast = i === this.turns.length - 1;
    const acts = { Copy: (button) => this.copy(turn, button) };
    acts.Edit = () => this.messages[i].edit();
    if (isUser && isLast) acts["Send again"] = () => this.answer();
    if (!isUser && isLast) acts.Regenerate = () => this.regenerate();
    if (turn.run) acts.Steps = () => this.showSteps(turn);
    const save = (text) => (isUser ? this.resend(i, text) : this.change(i, text));
    return new Message(turn, isUser ? "You" : this.page.data.model.name, acts, save);
  }

  watch(turn, i) {
    const { said, field } = this.messages[i];
    const act = (text, stretch, count) => this.refill(i, text, stretch, count);
    this.page.refill.watch(said, () => turn.content, act);
    this.page.refill.watch(field, () => field.value, act);
  }

  showSteps({ run }) {
    this.page.view.show([run], "The answer, step by step");
    byId("view").scrollIntoView({ block: "nearest" });
  }

  async copy({ content }, button) {
    button.textContent = (await copy(content)) ? "Copied" : "No clipboard here";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  }

  // What is asked.

  send(text) {
    if (this.page.view.isRunning || !text.trim()) return byId("say").focus();
    byId("say").value = "";
    this.turns.push({ role: "user", content: text });
    return this.answer();
  }

  /** A message said anew: what came after it is gone. */
  resend(i, text) {
    if (this.page.view.isRunning || !text.trim()) return;
    this.turns.splice(i, Infinity, { role: "user", content: text });
    this.answer();
  }

  regenerate() {
    if (this.page.view.isRunning) return;
    const { content } = this.turns.pop();
    this.answer(content);
  }

  change(i, text) {
    Object.assign(this.turns[i], { content: text, fresh: null, run: null, note: "edited" });
    this.show();
  }

  /** `before`: the answer that it is to be instead of. */
  async answer(before) {
    const history = [...this.turns];
    const turn = { role: "assistant", content: "" };
    this.turns.push(turn);
    const run = await this.run(turn, { messages: this.messagesOf(history) });
    if (!run) {
      // Nothing came of it: what was asked stays, to be asked again.
      this.turns = before === undefined ? history : [...history, { ...turn, content: before }];
      return this.show();
    }
    turn.content = run.end.text;
    if (before === turn.content) turn.note += ` \u00b7 ${SAME}`;
    this.show();
    this.page.say(turn.content);
    // What was pressed for it is gone.
    if (document.activeElement === document.body) byId("say").focus({ preventScroll: true });
  }

  /** Refills a stretch of an answer; a stop leaves it as it was. */
  async refill(i, text, { from, to }, count) {
    if (this.page.view.isRunning) return;
    const infill = `${text.slice(0, from)}[[${count}]]${text.slice(to)}`;
    const turn = Object.assign(this.turns[i], { content: text, fresh: null });
    const run = await this.run(turn, { messages: this.messagesOf(this.turns.slice(0, i)), infill });
    if (run && run.end.finish_reason !== "cancelled") {
      const { text: content, stretch } = fillIn(run, partsOf(infill));
      Object.assign(turn, { content, fresh: stretch });
      this.page.say(content);
    }
    this.show();
    this.messages[i].root.querySelector(".acts button").focus();
  }

  messagesOf(turns) {
    const system = byId("system-text").value.trim();
    const said = turns.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...said] : said;
  }

  /** Runs what is asked of a turn, and shows it there; null where nothing came. */
  async run(turn, asked) {
    const { page } = this;
    let run = null;
    const more = page.tryTo(() => {
      page.settings.check();
      return page.settings.body("infill" in asked);
    });
    if (!more) return null;
    this.show();
    page.begin();
    page.view.show([]);
    const { said, root } = this.messages[this.turns.indexOf(turn)];
    root.classList.add("coming");
    root.scrollIntoView({ block: "nearest" });
    let draft;
    const on = {
      start: (start) => {
        run = new Run(start);
        draft = new Draft(said, run, partsOf(asked.infill) ?? ["", run.slots.length, ""]);
      },
      step: (step) => {
        run.add(step);
        this.frame ??= requestAnimationFrame(() => {
          this.frame = null;
          if (page.view.isRunning) draft.draw();
        });
        page.tellProgress(run);
      },
      end: (end) => (run.end = end),
    };
    const running = denoise({ ...asked, ...more }, page.key, page.abort.signal, on);
    const error = await running.catch((one) => one);
    if (run && !run.end) run.close(error?.ending ?? "cancelled");
    page.over(error && !isAbort(error) ? error : null);
    if (!run || (error && !run.steps.length)) return null;
    Object.assign(turn, { run, note: costOf(run) });
    return run;
  }
}

/** What an answer cost, and how it ended where that was not by itself. */
function costOf(run) {
  const { finish_reason: reason, forwards, seconds } = run.end;
  const written = run.slots.filter((position) => {
    return run.commits.has(position) && !SPECIAL.test(run.textAt(position));
  }).length;
  const lambdas = run.steps.map((step) => step.lambda).filter((lambda) => lambda !== null);
  const mean = lambdas.reduce((a, b) => a + b, 0) / lambdas.length;
  const ends = { ...ENDINGS, length: "cut off at max tokens" };
  return [
    plural(written, "token"),
    plural(forwards, "forward"),
    `${fixed(seconds, 1)} s`,
    lambdas.length ? `mean lambda ${fixed(mean)}` : null,
    ends[reason],
  ].filter(Boolean).join(" \u00b7 ");
}
