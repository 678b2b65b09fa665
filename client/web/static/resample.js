// A stream of samples from one rate to another: windowed sinc, 512 phases. Runs in worklets and in the page.

const PHASES = 512;
const ZERO_CROSSINGS = 12; // on each side; the stop band is below -60 dB

export class Resampler {
  constructor(from, to) {
    this.step = from / to;
    const cutoff = Math.min(1, to / from) * 0.94;
    this.half = Math.ceil(ZERO_CROSSINGS / cutoff);
    this.table = kernel(cutoff, this.half);
    this.past = new Float32Array(2 * this.half); // input that the next outputs still need
    this.at = this.half; // place of the next output in `past` followed by the new input
  }

  // Float32Array at the first rate -> Float32Array at the second; about `half` input samples stay for the next call.
  feed(input) {
    const { half, table, step } = this;
    const taps = 2 * half;
    const all = new Float32Array(this.past.length + input.length);
    all.set(this.past);
    all.set(input, this.past.length);
    const out = new Float32Array(Math.max(0, Math.ceil((all.length - half - this.at) / step)));
    let n = 0;
    let at = this.at;
    for (; at + half < all.length && n < out.length; at += step) {
      const whole = Math.floor(at);
      const row = Math.min(PHASES - 1, Math.floor((at - whole) * PHASES)) * taps;
      const first = whole - half + 1;
      let sum = 0;
      for (let i = 0; i < taps; i++) sum += all[first + i] * table[row + i];
      out[n++] = sum;
    }
    const keep = Math.min(all.length, Math.max(taps, all.length - Math.floor(at) + half));
    this.past = all.slice(all.length - keep);
    this.at = at - (all.length - keep);
    return out.subarray(0, n);
  }
}

function kernel(cutoff, half) {
  const taps = 2 * half;
  const table = new Float32Array(PHASES * taps);
  for (let phase = 0; phase < PHASES; phase++) {
    let sum = 0;
    for (let i = 0; i < taps; i++) {
      const x = i - half + 1 - phase / PHASES;
      const window = Math.abs(x) < half ? Math.cos((Math.PI * x) / (2 * half)) ** 2 : 0;
      const sinc = x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x);
      table[phase * taps + i] = sinc * window;
      sum += sinc * window;
    }
    for (let i = 0; i < taps; i++) table[phase * taps + i] /= sum; // unit gain at every phase
  }
  return table;
}
