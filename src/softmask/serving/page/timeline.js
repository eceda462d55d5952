// Which step is looked at: follows a run that goes on, until somebody scrubs.

const LONGEST_REPLAY = 8000;
const SLOWEST_STEP = 600;
const HOLD = 3000; // before a repeated replay begins anew

class Timeline {
  constructor(onChange) {
    this.range = byId("scrub");
    this.output = byId("at");
    this.button = byId("play");
    this.onChange = onChange;
    this.step = 0;
    this.follows = true;
    this.range.addEventListener("input", () => this.scrub(Number(this.range.value)));
    this.button.addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    this.timer = 0;
  }

  show(total, reached, isRunning) {
    this.total = total;
    this.reached = reached;
    this.isRunning = isRunning;
    if (this.follows) this.step = reached;
    this.write();
  }

  scrub(step) {
    this.pause();
    this.follows = step >= this.reached;
    this.go(step);
  }

  go(step) {
    this.step = Math.min(Math.max(step, 0), this.reached);
    this.write();
    this.onChange();
  }

  /** `again`: from the start whenever it is over, until it is paused. */
  play(again = false) {
    if (this.isRunning) return this.scrub(this.reached);
    const pace = Math.min(LONGEST_REPLAY / this.total, SLOWEST_STEP);
    const from = this.step >= this.reached ? 0 : this.step;
    const length = (this.reached - from) * pace;
    const began = performance.now();
    const tick = (now) => {
      this.timer = requestAnimationFrame(tick);
      const time = now - began;
      const step = Math.min(from + Math.floor(time / pace), this.reached);
      if (time >= length && !again) this.pause();
      if (step !== this.step) this.go(step);
      if (time >= length + HOLD && again) {
        this.pause();
        this.play(true);
      }
    };
    this.follows = false;
    this.timer = requestAnimationFrame(tick);
    this.go(from);
  }

  pause() {
    cancelAnimationFrame(this.timer);
    this.timer = 0;
    this.write();
  }

  write() {
    if (this.range.max !== String(this.total)) this.range.max = this.total;
    this.range.value = this.step;
    const text = `step ${this.step} of ${this.total}`;
    if (this.output.textContent !== text) this.output.textContent = this.range.ariaValueText = text;
    const label = this.timer ? "Pause" : this.isRunning ? "Follow" : "Play";
    if (this.button.textContent !== label) this.button.textContent = label;
    this.button.disabled = this.isRunning && this.follows;
  }
}
