// Microphone (or silence) -> 16-bit units at the model's rate. Ticks four times a unit, for the camera.

import { Resampler } from "../resample.js";

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.resampler = new Resampler(sampleRate, processorOptions.rate);
    this.unit = new Int16Array(processorOptions.samples);
    this.filled = 0;
    this.quarter = processorOptions.samples / 4;
    this.muted = false;
    this.silence = new Float32Array(128);
    this.port.onmessage = ({ data }) => { this.muted = data.muted; };
  }

  process([input]) {
    let mono = this.silence;
    if (!this.muted && input.length === 1) mono = input[0];
    else if (!this.muted && input.length > 1) mono = input[0].map((x, i) => (x + input[1][i]) / 2);
    for (const sample of this.resampler.feed(mono)) {
      this.unit[this.filled++] = Math.max(-1, Math.min(1, sample)) * 32767;
      if (this.filled % this.quarter === 0) this.port.postMessage({ tick: this.filled / this.quarter });
      if (this.filled === this.unit.length) {
        const pcm = this.unit.slice();
        this.port.postMessage({ pcm }, [pcm.buffer]);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
