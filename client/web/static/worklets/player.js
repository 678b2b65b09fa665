// The agent's voice: a small jitter buffer that adapts to the network, and that can be emptied at once.

const START_MS = 40; // of delay before the first unit, so that the next one may be that late
const MOST_MS = 240;
const STEP_MS = 20; // more delay after each gap
const EXCESS_MS = 240; // more than delay + one unit + this never plays: it would only be lag
const WATCH_UNITS = 8; // a queue that was never shorter than the delay for so long is cut back to it
const SPARE_MS = 15;
const CALM_SECONDS = 20; // without a gap, after which the delay shrinks again
const FADE_MS = 5;

class Player extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.unitSamples = processorOptions.unitSamples; // at the output rate
    this.queue = []; // {unit, pcm, at}
    this.queued = 0; // samples
    this.hold = 0; // samples of silence before the queue plays on
    this.playing = false;
    this.delay = this.ms(START_MS);
    this.calm = 0; // samples since the last gap
    this.last = 0; // sample played last, from which a flush fades
    this.fade = 0;
    this.energy = 0;
    this.counted = 0;
    this.gaps = 0;
    this.skipped = 0;
    this.least = []; // samples that waited when each of the last units came
    this.port.onmessage = ({ data }) => (data.flush ? this.flush() : this.push(data));
  }

  ms(value) { return Math.round((value * sampleRate) / 1000); }

  push({ unit, pcm }) {
    if (!this.playing) {
      this.playing = true;
      this.hold = this.delay;
      this.least.length = 0;
    }
    pcm = this.shortened(pcm);
    this.queue.push({ unit, pcm, at: 0 });
    this.queued += pcm.length;
    while (this.queued > this.delay + this.unitSamples + this.ms(EXCESS_MS) && this.queue.length > 1) {
      const gone = this.queue.shift();
      this.queued -= gone.pcm.length - gone.at;
      this.skipped++;
    }
  }

  // Cuts what a burst has left in the queue beyond the delay, at most half a unit at a time, with a splice.
  shortened(pcm) {
    this.least.push(this.queued + this.hold);
    if (this.least.length < WATCH_UNITS) return pcm;
    const spare = Math.min(...this.least) - this.delay - this.ms(SPARE_MS);
    this.least.shift();
    if (spare <= 0) return pcm;
    this.least.length = 0;
    const cut = Math.min(spare, pcm.length >> 1);
    const out = pcm.slice(cut);
    const splice = this.ms(FADE_MS);
    for (let i = 0; i < splice; i++) out[i] = pcm[i] + ((out[i] - pcm[i]) * i) / splice;
    return out;
  }

  flush() {
    const queued = this.queued;
    this.queue.length = 0;
    this.queued = 0;
    this.playing = false;
    this.hold = 0;
    this.fade = this.ms(FADE_MS);
    this.port.postMessage({ flushed: (queued * 1000) / sampleRate });
  }

  process(inputs, [output]) {
    const out = output[0];
    for (let i = 0; i < out.length; i++) out[i] = this.next(i);
    for (let channel = 1; channel < output.length; channel++) output[channel].set(out);
    for (const x of out) this.energy += x * x;
    this.counted += out.length;
    if (this.counted >= this.ms(100)) {
      const rms = Math.sqrt(this.energy / this.counted);
      const { gaps, skipped } = this;
      this.port.postMessage({ rms, queued: (this.queued * 1000) / sampleRate, gaps, skipped,
        delay: (this.delay * 1000) / sampleRate });
      this.energy = 0;
      this.counted = 0;
    }
    return true;
  }

  next(i) {
    if (this.hold > 0) { this.hold--; return this.rest(); }
    const head = this.queue[0];
    if (head === undefined) {
      if (this.playing) this.gap();
      return this.rest();
    }
    if (head.at === 0) this.port.postMessage({ began: head.unit, time: currentTime + i / sampleRate });
    this.last = head.pcm[head.at++];
    this.queued--;
    this.calm++;
    if (head.at === head.pcm.length) this.queue.shift();
    if (this.calm > CALM_SECONDS * sampleRate && this.delay > this.ms(START_MS)) {
      this.delay -= this.ms(STEP_MS / 2);
      this.calm = 0;
    }
    return this.last;
  }

  // Silence, reached without a click.
  rest() {
    if (this.fade > 0) {
      this.fade--;
      this.last *= this.fade / (this.fade + 1);
    } else {
      this.last = 0;
    }
    return this.last;
  }

  gap() {
    this.playing = false;
    this.gaps++;
    this.calm = 0;
    this.delay = Math.min(this.ms(MOST_MS), this.delay + this.ms(STEP_MS));
    this.fade = this.ms(FADE_MS);
  }
}

registerProcessor("player", Player);
