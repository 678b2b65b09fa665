// The last 30 seconds, one column a unit: where its time went, against the deadline.

const UNIT_MS = 160;
const UNITS = Math.ceil(30000 / UNIT_MS);
const TOP_MS = 320;
const GRID_MS = [0, 80, 160, 240, 320];

// In the order in which a unit passes through them; `from` finds the milliseconds in a record.
const STAGES = [
  ["wait", "wait"],
  ["perceive", "perceive"],
  ["think", "think"],
  ["perform", "perform"],
  ["render", "render"],
  ["network", "network"],
  ["playout", "playout"],
];
const MARKS = [["deadline", "deadline, 160 ms", "line"], ["accent", "agent speaks", "bar"]];

export class Strip {
  constructor(canvas, legend, summary) {
    Object.assign(this, { canvas, legend, summary });
    this.units = []; // {unit, speak, ms: {stage: milliseconds}, late, degraded}
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.drawn = 0;
    this.values = new Map();
    for (const [stage, label, mark] of [...STAGES, ...MARKS]) {
      const item = document.createElement("li");
      const tone = document.createElement("i");
      const value = document.createElement("b");
      tone.style.setProperty("--tone", `var(--${stage})`);
      if (mark) tone.className = mark;
      item.append(tone, label, " ", value);
      legend.append(item);
      this.values.set(stage, value);
    }
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  add(record) {
    this.units.push(record);
    if (this.units.length > UNITS) this.units.shift();
    const now = performance.now();
    if (now - this.drawn > (this.calm.matches ? 2000 : UNIT_MS / 2)) {
      this.drawn = now;
      this.draw();
      this.describe();
    }
  }

  // The unit's sound is heard: now its time in the player is known.
  played(unit, ms) {
    const record = this.units.findLast((one) => one.unit === unit);
    if (record) record.ms.playout = ms;
  }

  response(record) {
    return STAGES.slice(0, -1).reduce((sum, [stage]) => sum + (record.ms[stage] || 0), 0);
  }

  describe() {
    for (const [stage] of STAGES) {
      const known = this.units.map(({ ms }) => ms[stage]).filter((x) => x !== undefined);
      this.values.get(stage).textContent = known.length ? median(known).toFixed(0) : "–";
    }
    const late = this.units.filter(({ late }) => late).length;
    const mid = median(this.units.map((one) => this.response(one)));
    this.summary.textContent =
      `${this.units.length} units, ${this.units.length - late} on time, median response ${mid.toFixed(0)} ms`;
    this.canvas.setAttribute("aria-label", `Latency of each unit, by stage: ${this.summary.textContent}`);
  }

  draw() {
    const { canvas } = this;
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const tone = (name) => style.getPropertyValue(`--${name}`);
    const area = { left: 30, top: 8, width: width - 30, height: height - 8 - 20 };
    const y = (ms) => area.top + area.height * (1 - Math.min(ms, TOP_MS) / TOP_MS);
    pen.font = `11px ${style.fontFamily}`;
    this.axes(pen, area, y, tone);
    const column = area.width / UNITS;
    const first = UNITS - this.units.length;
    for (const [i, record] of this.units.entries()) {
      const x = area.left + (first + i) * column;
      let sum = 0;
      for (const [stage] of STAGES) {
        const ms = record.ms[stage] || 0;
        pen.fillStyle = tone(stage);
        pen.fillRect(x, y(sum + ms), Math.max(1, column - 0.7), y(sum) - y(sum + ms));
        sum += ms;
      }
      if (record.late) {
        pen.fillStyle = tone("deadline");
        pen.fillRect(x, area.top - 6, Math.max(2, column - 0.7), 4);
      }
      if (record.speak) {
        pen.fillStyle = tone("accent");
        pen.fillRect(x, area.top + area.height + 2, column + 0.3, 3);
      }
    }
    pen.strokeStyle = tone("deadline");
    pen.lineWidth = 1.5;
    pen.setLineDash([6, 4]);
    pen.beginPath();
    pen.moveTo(area.left, y(UNIT_MS));
    pen.lineTo(width, y(UNIT_MS));
    pen.stroke();
  }

  axes(pen, area, y, tone) {
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const ms of GRID_MS) {
      pen.fillStyle = tone("line");
      pen.fillRect(area.left, Math.round(y(ms)), area.width, 1);
      pen.fillStyle = tone("soft");
      pen.fillText(ms === TOP_MS ? "ms" : ms, area.left - 5, y(ms));
    }
    pen.textBaseline = "top";
    for (const seconds of [30, 20, 10, 0]) {
      const x = area.left + area.width * (1 - seconds / 30);
      pen.textAlign = { 30: "left", 0: "right" }[seconds] ?? "center";
      pen.fillText(seconds ? `${seconds} s ago` : "now", x, area.top + area.height + 8);
    }
  }
}

function median(values) {
  if (!values.length) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
