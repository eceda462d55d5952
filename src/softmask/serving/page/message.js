// One message of a conversation: its text, what can be done with it, and its editor.

class Message {
  /**
   * `turn`: { role, content, note, fresh }, where `fresh` is the stretch that was refilled; `acts`:
   * names of buttons and what they do; `save(text)` takes an edited text over.
   */
  constructor(turn, name, acts, save) {
    this.root = byId("message").content.firstElementChild.cloneNode(true);
    this.root.classList.add(turn.role);
    const part = (selector) => this.root.querySelector(selector);
    part("h2").textContent = name;
    this.said = part(".said");
    this.note = part(".note");
    this.form = part(".edit");
    this.field = part(".edit textarea");
    this.turn = turn;
    this.write();
    for (const [label, act] of Object.entries(acts)) {
      const button = element("button", "quiet", label);
      button.type = "button";
      button.addEventListener("click", () => act(button));
      part(".acts").append(button);
    }
    part(".edit .primary").textContent = turn.role === "user" ? "Send" : "Save";
    this.field.ariaLabel = `Edit: ${name}`;
    part(".cancel").addEventListener("click", () => this.edit(false));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      save(this.field.value);
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.edit(false);
      if (turn.role !== "user" || !isSending(event)) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
  }

  write() {
    const { content, fresh, note } = this.turn;
    const { from, to } = fresh ?? { from: 0, to: 0 };
    const stretch = to > from ? element("mark", "", content.slice(from, to)) : "";
    const parts = [content.slice(0, from), stretch, content.slice(to)];
    this.said.replaceChildren(...parts.filter((part) => part));
    this.note.textContent = note ?? "";
  }

  edit(isOpen = true, text = this.turn.content) {
    this.form.hidden = !isOpen;
    this.said.hidden = isOpen;
    this.root.querySelector(".acts").hidden = isOpen;
    if (!isOpen) return;
    this.field.value = text;
    this.field.focus();
  }
}

/** Enter sends, Shift+Enter is a new line; an Enter that ends a composed character is neither. */
const isSending = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
