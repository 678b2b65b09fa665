// The agent's picture: four frames a unit, each shown when its sound is heard.

const FRAME_MS = 40;
const KEPT = 8; // units of pictures that wait for their sound

export class Screen {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d", { alpha: false });
    this.strips = new Map(); // unit -> ImageBitmap
    this.begins = []; // {unit, at}, in order
    this.shown = ""; // unit and frame on the canvas
    this.frames = 0; // drawn in all
    this.stopped = false;
    requestAnimationFrame(() => this.paint());
  }

  resize({ width, height }) {
    // Twice the model's size at least: the browser then scales a smooth picture, not blocks.
    const factor = Math.max(1, Math.ceil(512 / Math.max(width, height)));
    this.canvas.width = width * factor;
    this.canvas.height = height * factor;
    this.pen.imageSmoothingQuality = "high";
    this.frame = { width, height };
  }

  async add(unit, blob) {
    const strip = await createImageBitmap(blob);
    this.strips.set(unit, strip);
    for (const old of [...this.strips.keys()].slice(0, -KEPT)) this.drop(old);
  }

  // The sound of `unit` is heard from `at` on.
  begin(unit, at) {
    this.begins.push({ unit, at });
    if (this.begins.length > KEPT) this.begins.shift();
  }

  // What waits will not be heard, so it is not shown either.
  flush() {
    const now = performance.now();
    this.begins = this.begins.filter(({ at }) => at <= now);
  }

  drop(unit) {
    this.strips.get(unit)?.close();
    this.strips.delete(unit);
  }

  paint() {
    if (this.stopped) return;
    const now = performance.now();
    const due = this.begins.filter(({ at }) => at <= now);
    const present = due.at(-1);
    const strip = present && this.strips.get(present.unit);
    if (strip) {
      const place = Math.min(3, Math.floor((now - present.at) / FRAME_MS));
      const key = `${present.unit}/${place}`;
      if (key !== this.shown) {
        const { width, height } = this.frame;
        this.pen.drawImage(strip, 0, place * height, width, height, 0, 0, this.canvas.width, this.canvas.height);
        this.shown = key;
        this.frames++;
      }
    }
    requestAnimationFrame(() => this.paint());
  }
}
