// A conversation with a model that has a chat template: asked, answered, edited, refilled. Kept in
// this tab, until it is cleared or the tab is closed.

const KEPT = "softmask-conversation";
const SAME = "the same as before: nothing is left to chance at temperature 0, or with this seed";

class Conversation {
  constructor(page) {
    this.page = page;
    this.turns = [];
    this.messages = [];
    this.before = null; // an answer: the turns before it was asked for
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
  }

  // What is kept.

  restore() {
    const kept = recall("sessionStorage", KEPT);
    const { system, turns, asked } = kept ? JSON.parse(kept) : { system: "", turns: [] };
    byId("system-text").value = system;
    byId("system").open = Boolean(system);
    this.turns = turns;
    this.show();
    if (!asked) return;
    this.putBack(asked);
    const advice = asked.text === undefined ? "Regenerate it." : "Send the message again.";
    this.page.warn(new Refusal("Interrupted: the page was left before the answer came", advice));
  }

  keep() {
    const { turns, asked } = this.before ?? this;
    const kept = turns.map(({ role, content, note }) => ({ role, content, note }));
    const system = byId("system-text").value;
    keep("sessionStorage", KEPT, JSON.stringify({ system, turns: kept, asked }));
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
    const acts = { Copy: (button) => this.copy(turn, button) };
    acts.Edit = () => this.messages[i].edit();
    if (!isUser && i === this.turns.length - 1) acts.Regenerate = () => this.regenerate();
    if (turn.run) acts.Steps = () => this.showSteps(turn);
    const save = (text) => (isUser ? this.ask(i, text) : this.change(i, text));
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
    return this.ask(this.turns.length, text);
  }

  /** Says something in place of a turn and of all that came after it. */
  ask(at, text) {
    if (this.page.view.isRunning || !text.trim()) return;
    return this.answer([...this.turns.slice(0, at), { role: "user", content: text }], { at, text });
  }

  regenerate() {
    if (!this.page.view.isRunning) this.answer(this.turns.slice(0, -1), {});
  }

  /** A message that was not answered comes back to where it was written. */
  putBack({ at, text }) {
    if (text === undefined) return;
    if (at < this.turns.length) return this.messages[at].edit(true, text);
    const say = byId("say");
    say.value = [text, say.value].filter(Boolean).join("\n");
  }

  change(i, text) {
    Object.assign(this.turns[i], { content: text, fresh: null, run: null, note: "edited" });
    this.show();
  }

  /**
   * Has `history` answered. Where nothing comes of it, or the page is left, all is as before, and
   * `asked`, { at, text }, can be sent again; {}: another answer to what had one, which a stop keeps.
   */
  async answer(history, asked) {
    const { turns } = this;
    const turn = { role: "assistant", content: "" };
    this.before = { turns, asked };
    this.turns = [...history, turn];
    const run = await this.run(turn, { messages: this.messagesOf(history) });
    this.before = null;
    const isAgain = asked.text === undefined;
    const isKept = run && (run.isWhole || (!isAgain && run.end.text));
    if (isKept) {
      turn.content = run.end.text;
      const isSame = isAgain && turns.at(-1).content === turn.content;
      if (isSame) turn.note += ` \u00b7 ${SAME}`;
      this.page.say(turn.content);
    } else this.turns = turns;
    this.show();
    if (!isKept) this.putBack(asked);
    // What was pressed for it is gone.
    if (document.activeElement === document.body) byId("say").focus({ preventScroll: true });
  }

  /** Refills a stretch of an answer; a stop, and an end before its time, leave it as it was. */
  async refill(i, text, stretch, count) {
    if (this.page.view.isRunning) return;
    const infill = withHole(this.page, text, stretch, count);
    if (infill === null) return;
    const turn = this.turns[i];
    const { content: before, fresh: shone, run: shown, note } = turn;
    Object.assign(turn, { content: text, fresh: null });
    const run = await this.run(turn, { messages: this.messagesOf(this.turns.slice(0, i)), infill });
    if (run?.isWhole) {
      const { text: content, stretch: fresh } = fillIn(run, partsOf(infill));
      Object.assign(turn, { content, fresh });
      this.page.say(content);
    } else Object.assign(turn, { content: before, fresh: shone, run: shown, note });
    this.show();
    if (!run?.isWhole && text !== before) return this.messages[i].edit(true, text);
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
    const error = await page.during(async () => {
      page.settings.check();
      const body = { ...asked, ...page.settings.body("infill" in asked) };
      this.show();
      page.view.show([]);
      const { said, root } = this.messages[this.turns.indexOf(turn)];
      root.classList.add("coming");
      root.scrollIntoView({ block: "nearest" });
      let draft;
      await denoise(body, page.key, page.abort.signal, {
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
      });
    });
    if (run && !run.end) run.close(error?.ending ?? "cancelled");
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
