// Captions (word by word, for the eye) and the transcript (turn by turn, also for screen readers).

const GAP_UNITS = 3; // without text, after which a turn is over; four times that while the agent speaks
const LONG_TURN = 400; // characters
const MOST_TURNS = 200;
const CAPTION_CHARACTERS = 160;

export class Transcript {
  constructor(log, caption) {
    this.log = log;
    this.caption = caption;
    this.turn = ""; // what the agent is saying, not yet in the log
    this.lastUnit = -1;
    this.heardUnit = -1;
    this.heardTurn = null; // of the user, in the log
    this.follows = true; // the newest turn is in sight; false once the reader has scrolled back
    log.addEventListener("scroll", () => {
      this.follows = log.scrollTop + log.clientHeight > log.scrollHeight - 40;
    });
    new ResizeObserver(() => this.follow()).observe(log);
  }

  follow() {
    if (this.follows) this.log.scrollTop = this.log.scrollHeight;
  }

  // Turns of before a reload.
  restore(history) {
    this.log.replaceChildren();
    this.turn = "";
    for (const { who, text } of history) this.add(who, text);
  }

  agent(unit, text) {
    this.turn += text;
    this.lastUnit = unit;
    const shown = this.turn.trim();
    this.caption.textContent = shown.length > CAPTION_CHARACTERS ? `… ${shown.slice(-CAPTION_CHARACTERS)}` : shown;
  }

  // A unit has passed: a turn that has ended, or grown long, goes to the log.
  passed(unit, speaking) {
    const gap = unit - this.lastUnit;
    if (this.turn && (gap > (speaking ? 4 : 1) * GAP_UNITS || this.turn.length > LONG_TURN)) this.close();
  }

  close(mark = "") {
    const text = this.turn.trim();
    this.turn = "";
    if (text) this.add("agent", text + mark);
  }

  you(text) {
    this.close();
    this.add("you", text);
  }

  // Words that the agent heard: the user's turn grows by them.
  heard(unit, text) {
    const goesOn = this.heardTurn !== null && this.heardTurn === this.log.lastChild && !this.turn;
    if (goesOn && unit - this.heardUnit <= GAP_UNITS) {
      this.heardTurn.append(text);
      this.follow();
    } else {
      this.you(text.trim());
      this.heardTurn = this.log.lastChild;
    }
    this.heardUnit = unit;
  }

  add(who, text) {
    const item = document.createElement("li");
    const name = document.createElement("span");
    item.className = who;
    name.className = "who";
    name.textContent = who === "agent" ? "Agent" : "You";
    item.append(name, text);
    this.log.append(item);
    while (this.log.children.length > MOST_TURNS) this.log.firstChild.remove();
    this.follow();
  }
}
