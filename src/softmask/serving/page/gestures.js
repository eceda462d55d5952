// What pointers and keys do on tokens and strips; one listener a kind for all of them.

function listenToTokens(page, root) {
  const on = (type, act) => root.addEventListener(type, (event) => {
    const panel = page.panels.find(({ canvas }) => canvas.host.contains(event.target));
    const position = panel?.canvas.positionOf(event.target) ?? null;
    if (position !== null) act(panel, position, event);
  });
  on("pointerover", (panel, position) => page.look(panel, position));
  on("pointerout", () => page.popover.hideSoon());
  on("focusin", (panel, position) => {
    panel.canvas.enter(position, panel.run.indexAt(page.timeline.step));
    page.look(panel, position);
  });
  on("focusout", (panel, position) => {
    panel.canvas.leave(position);
    page.popover.hideSoon();
  });
  on("click", (panel, position) => panel.canvas.focus(position));
  on("keydown", (panel, _position, event) => {
    const next = panel.canvas.neighbour(event.key);
    if (next === null) return;
    event.preventDefault();
    panel.canvas.focus(next);
  });
}

function listenToStrips(page, root) {
  const on = (type, act) => root.addEventListener(type, (event) => {
    const panel = page.panels.find(({ strip }) => strip.canvas === event.target);
    if (panel) act(panel, panel.strip.at(event), event);
  });
  on("pointerdown", (panel, { step, position }, event) => {
    panel.strip.canvas.setPointerCapture(event.pointerId);
    page.timeline.scrub(step);
    page.choose(position);
  });
  on("pointermove", (panel, { step, position }, event) => {
    if (event.buttons) page.timeline.scrub(step);
    const index = panel.run.indexAt(step);
    const { clientX: left, clientY: y } = event;
    const spot = { left: left + 12, top: y - 8, bottom: y + 8 };
    if (index >= 0) page.popover.show(spot, panel.run, index, position);
    page.choose(position);
  });
  on("pointerout", () => page.popover.hideSoon());
}
