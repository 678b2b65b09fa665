// The page's side of the voice: resamples units to the output rate and tells when each is heard.

import { Resampler } from "./resample.js";

export class Player {
  // shape: {samples, sample_rate} of one unit.  onBegin(unit, at): `at` by performance.now(), when it reaches the ear.
  static async make(context, shape, onBegin) {
    await context.audioWorklet.addModule("/static/worklets/player.js");
    return new Player(context, shape, onBegin);
  }

  constructor(context, shape, onBegin) {
    this.context = context;
    this.asked = []; // flushes under way
    this.shape = shape;
    this.resampler = new Resampler(shape.sample_rate, context.sampleRate);
    this.stats = { rms: 0, peak: 0, queued: 0, gaps: 0, skipped: 0, delay: 0, flushes: 0, flushedMs: 0 };
    const unitSamples = Math.round((shape.samples * context.sampleRate) / shape.sample_rate);
    this.node = new AudioWorkletNode(context, "player", {
      numberOfInputs: 0, outputChannelCount: [2], processorOptions: { unitSamples },
    });
    this.node.connect(context.destination);
    this.node.port.onmessage = ({ data }) => {
      if (data.began !== undefined) {
        const ahead = data.time - context.currentTime + (context.outputLatency || 0);
        onBegin(data.began, performance.now() + ahead * 1000);
      } else if (data.flushed !== undefined) {
        this.stats.flushes++;
        this.stats.flushedMs = data.flushed;
        this.asked.shift()?.();
      } else {
        Object.assign(this.stats, data);
        this.stats.peak = Math.max(this.stats.peak, data.rms);
      }
    };
  }

  get running() { return this.context.state === "running"; }

  // Int16Array of one unit, or null for a unit that is not to be heard.
  push(unit, pcm16) {
    if (!this.running) return;
    const pcm = new Float32Array(this.shape.samples);
    if (pcm16 !== null) for (let i = 0; i < pcm.length; i++) pcm[i] = (pcm16[i] || 0) / 32768;
    const out = this.resampler.feed(pcm).slice();
    this.node.port.postMessage({ unit, pcm: out }, [out.buffer]);
  }

  // Silence at once: nothing that waits will be heard.
  // The promise is kept once the audio thread has done it.
  flush() {
    return new Promise((done) => {
      this.asked.push(done);
      this.node.port.postMessage({ flush: true });
    });
  }

  close() { this.node.disconnect(); }
}
